"""What reads and makes model files. Untrusted bytes are worked on in a child process."""
