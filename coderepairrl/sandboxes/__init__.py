"""A sandbox is a live, isolated, disposable copy of a task's checkout. One file a runtime, one dict of names.

    async with start_sandbox(SandboxConfig(kind="bubblewrap"), task) as sandbox:
        result = await sandbox.run("python3 test_lib.py", timeout_s=10)
        patch = await sandbox.diff()
"""
