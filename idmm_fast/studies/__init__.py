"""Studies: the demo, and what class weights learn."""
