"""Video auto-encoder of normal welds on frozen clip vectors."""
