"""Reports on runs, from the records in their stores: status, pages, comparisons."""
