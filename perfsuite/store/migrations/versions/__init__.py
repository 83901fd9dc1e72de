"""One file for each schema of the catalog, oldest first."""
