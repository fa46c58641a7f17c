from setuptools import find_packages, setup

setup(
    name="coderepairrl",
    version="0.2.0",
    description="Agent-in-the-loop reinforcement learning for code repair",
    packages=find_packages(include=["coderepairrl", "coderepairrl.*"]),
    package_data={
        "coderepairrl.models": ["*.jinja"],
        "coderepairrl.tasks": ["*.yaml", "*.jsonl"],
        "coderepairrl.scaffolds": ["locks/*"],
    },
    python_requires=">=3.11,<3.13",
)
