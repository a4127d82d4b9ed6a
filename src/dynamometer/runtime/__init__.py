"""What the processes are to each other: instances, their records, and where they are found."""
