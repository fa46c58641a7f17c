"""The options under which pytest judges a project whose settings are its own: what they set for the report and the
cache is set back.

The cache is at work, for options and tests that ask for it (--ff, cache_dir, config.cache), but empty, and nobody reads
what it leaves: it lies
in the report's folder, which is new with each run.
"""

OPTIONS = (
    "-q",
    "-o",
    "cache_dir={junit}/cache",
    "-o",
    "junit_family=xunit1",
    "--junit-prefix=",
    "--junitxml={junit}/report.xml",
)
