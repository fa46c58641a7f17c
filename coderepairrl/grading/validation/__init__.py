"""Build validation, whose verdict the reward `build` is the number of: does a command succeed after the fix, and does
nothing that validates say less than before? In the order of the walk:

    build_verdict      all below -> BuildVerdict
    build_runs         one run of the command: how it ended, which tests ran
    measures           which files validate; the diff's product under those of the base, or of the oracle
    plants             an expectation that is turned, so that the build must fail
    reach              what new code could bend beyond its own values
    weaker             what a changed file validates less than before:
      weaker_tests, assertions     tests
      silenced                     comments and types that keep a checker quiet
      configurations, commands     what checkers and builds are told
"""
