"""HTML reports: pages from templates, and the charts in them."""
