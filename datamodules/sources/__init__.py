"""Sources of pairs and items: manifests, tables, published data sets, folders of media."""
