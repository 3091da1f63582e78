"""`chainserve bench`: requests at random times, and how long they wait, begin and take."""
