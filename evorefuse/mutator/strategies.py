"""The nine strategies of EVOREFUSE §3.3 and recombination, by the names that every mutator gives them."""

STRATEGIES = (
    "controversial_topic",
    "imaginary_scenario",
    "implied_harm",
    "violent_words",
    "prejudiced_words",
    "sensitive_words",
    "anger",
    "disgust",
    "despair",
)
RECOMBINE = "recombine"
