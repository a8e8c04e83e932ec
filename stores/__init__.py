"""Where pictures lie besides plain files: in tars, in Parquet files, in object stores."""
