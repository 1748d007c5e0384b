"""Downloads: the addresses in a task become files, politely, safely and resumably."""
