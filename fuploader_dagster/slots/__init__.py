"""Slots: the directories that messages are stored in before they are packed."""
