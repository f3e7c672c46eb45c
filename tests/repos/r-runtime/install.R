install.packages("glue")
