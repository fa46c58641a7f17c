"""Starting and ending processes, on the machine and in images."""
