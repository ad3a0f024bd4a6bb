"""Reports: what a run finds, how sure that is, and where it fails; of our scores or of anyone's."""
