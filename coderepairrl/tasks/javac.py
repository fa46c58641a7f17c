"""Projects of Java whose tests are JUnit 3's or 4's and need no more than javac: how they are compiled and run."""

from coderepairrl.types import Environment

# A heap that the sandbox's memory holds, few threads, a compiler that starts fast (the runs are short), no files of the
# machine's own, and no other process that looks into it
JAVA = (
    "java",
    "-Xmx1g",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=3",  # counted: the order of a HashSet of objects is the same in every run
    "-XX:-UsePerfData",
    "-XX:+DisableAttachMechanism",
    "-cp",
    "{tool:junit}/*",
)
RUNNER = "JUnitXmlRunner"  # environments/java/


def environment(
    name: str,
    jdk: str,
    sources: tuple[str, ...],
    *,
    protected: tuple[str, ...],
    timeout_s: float,
    more: tuple[str, ...] = (),
) -> Environment:
    """`jdk`: "17"; `sources`: folders that are compiled; the tests are the task's selected files; `more`: options of
    the runner. Not built yet."""
    folders = [word for folder in sources for word in ("--sources", folder)]
    return Environment(
        name=name,
        base=None,
        python="",
        test_command=(*JAVA, RUNNER, "--report", "{junit}", *folders, *more, "{tests}", "{canary_path}"),
        protected=protected,
        test_timeout_s=timeout_s,
        language="java",
        tools=(f"jdk:{jdk}", "junit:4.13.2"),
    )
