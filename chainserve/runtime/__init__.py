"""What a running process needs: tasks that do not outlive their scope, and counters."""
