"""Any checkpoint to tables, figures, a report, predictions or an exported file."""
