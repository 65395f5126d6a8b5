"""Results as one page: blocks of a document, made from result files, as HTML or Markdown."""
