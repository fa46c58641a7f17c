"""What a demonstrator does, how each scaffold's model would say it, and who does it: experts, scripts, planted
exploits."""
