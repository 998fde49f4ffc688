"""What the commands of both programs, `gramfuse` and `gramfuse-server`, have alike: options, help and output."""
