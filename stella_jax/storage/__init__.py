"""Where files lie: paths, URLs and object stores; writing that a kill cannot leave half done."""
