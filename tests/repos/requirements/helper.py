HERE = "payload"
