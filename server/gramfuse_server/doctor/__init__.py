"""What is wrong with a server's installation, and what to do: the checks of `gramfuse-server doctor`."""
