"Packaging of mellm. Every value comes from settings.ini; there is nothing to edit here."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

home = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(home / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def listed(key):
    "The words of a setting that holds one item a line."
    return cfg.get(key, "").split()


licences = {"apache2": "Apache-2.0"}
statuses = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
licence = licences[cfg["license"]]
first, last = (int(cfg[key].split(".")[1]) for key in ("min_python", "max_python"))

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(home / "README.md").read_text(encoding="utf-8") if (home / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license=licence,
    keywords=cfg["keywords"],
    classifiers=[
        f"Development Status :: {statuses[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in range(first, last)],
    ],
    python_requires=f">={cfg['min_python']},<{cfg['max_python']}",
    packages=find_packages(include=[cfg["lib_name"], f"{cfg['lib_name']}.*"]),
    install_requires=listed("requirements"),
    extras_require={extra: listed(f"{extra}_requirements") for extra in listed("extras")},
    entry_points={"console_scripts": listed("console_scripts")},
    package_data={cfg["lib_name"]: listed("package_data")},
    include_package_data=False,
    zip_safe=False,
)
