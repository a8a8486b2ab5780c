"""Methods: what is trained beside a frozen backbone, and how it changes the network. A file each; the table is table.py."""
