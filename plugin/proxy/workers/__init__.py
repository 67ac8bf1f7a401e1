"""Several processes behind one address: a supervisor forks the workers, and one process for the admin page."""
