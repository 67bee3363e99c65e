"""Models by the name that a hub knows them by: what a name says, which files it needs, and how they come here."""
