"""The words of the tiny corpus: names, nouns, places and the facts about them."""

NAMES = tuple(
    """Mary John Alice Bob Carol David Emma Frank Grace Henry Irene Jack Karen Louis Maria Nathan Olivia Peter
    Quinn Rachel Simon Tina Ursula Victor Wendy Xavier Yvonne Zoe Adam Beth Chris Diana Eric Fiona George Hannah
    Ivan Julia Kevin Laura Martin Nina Oscar Paula Robert Susan Thomas Vera Walter Anna Brian Clara Daniel Elena
    Felix Greta Hugo Iris Jonas Tom""".split()
)

PLACES = tuple("store park school station library market beach museum hospital office restaurant garden".split())
OBJECTS = tuple("drink book ring letter coat ball present basket map kite lamp cake".split())

# singular -> plural
NOUNS = {
    "key": "keys", "cabinet": "cabinets", "book": "books", "table": "tables", "picture": "pictures", "house":
    "houses", "letter": "letters", "drawer": "drawers", "lamp": "lamps", "door": "doors", "flower": "flowers",
    "garden": "gardens", "car": "cars", "tree": "trees", "farmer": "farmers", "horse": "horses", "chair": "chairs",
    "window": "windows", "bridge": "bridges", "river": "rivers", "teacher": "teachers", "pupil": "pupils", "ship":
    "ships", "harbour": "harbours", "box": "boxes", "cup": "cups", "road": "roads", "village": "villages", "wall":
    "walls", "bird": "birds",
}  # fmt: skip
PREPOSITIONS = ("to", "near", "behind", "beside", "by")
ADJECTIVES = tuple("old new small large clean famous grey quiet green heavy".split())

EVENTS = tuple("war siege voyage drought reign famine project strike trade plague revolt peace".split())
CENTURIES = range(11, 20)

# country -> capital, language, continent
COUNTRIES = {
    "France": ("Paris", "French", "Europe"),
    "Italy": ("Rome", "Italian", "Europe"),
    "Germany": ("Berlin", "German", "Europe"),
    "Spain": ("Madrid", "Spanish", "Europe"),
    "Portugal": ("Lisbon", "Portuguese", "Europe"),
    "Greece": ("Athens", "Greek", "Europe"),
    "Poland": ("Warsaw", "Polish", "Europe"),
    "Austria": ("Vienna", "German", "Europe"),
    "Hungary": ("Budapest", "Hungarian", "Europe"),
    "Sweden": ("Stockholm", "Swedish", "Europe"),
    "Norway": ("Oslo", "Norwegian", "Europe"),
    "Denmark": ("Copenhagen", "Danish", "Europe"),
    "England": ("London", "English", "Europe"),
    "Russia": ("Moscow", "Russian", "Europe"),
    "Japan": ("Tokyo", "Japanese", "Asia"),
    "China": ("Beijing", "Chinese", "Asia"),
    "Thailand": ("Bangkok", "Thai", "Asia"),
    "Vietnam": ("Hanoi", "Vietnamese", "Asia"),
    "Iran": ("Tehran", "Persian", "Asia"),
    "Egypt": ("Cairo", "Arabic", "Africa"),
    "Morocco": ("Rabat", "Arabic", "Africa"),
    "Kenya": ("Nairobi", "Swahili", "Africa"),
    "Canada": ("Ottawa", "English", "America"),
    "Chile": ("Santiago", "Spanish", "America"),
    "Cuba": ("Havana", "Spanish", "America"),
    "Peru": ("Lima", "Spanish", "America"),
    "Brazil": ("Brasilia", "Portuguese", "America"),
}

# landmark, as inside a sentence -> city
LANDMARKS = {
    "the Eiffel Tower": "Paris",
    "the Louvre": "Paris",
    "the Colosseum": "Rome",
    "the Pantheon": "Rome",
    "the Brandenburg Gate": "Berlin",
    "the Prado": "Madrid",
    "the Alhambra": "Granada",
    "the Acropolis": "Athens",
    "the Little Mermaid": "Copenhagen",
    "Big Ben": "London",
    "Tower Bridge": "London",
    "Red Square": "Moscow",
    "the Kremlin": "Moscow",
    "Tokyo Tower": "Tokyo",
    "the Forbidden City": "Beijing",
    "the Space Needle": "Seattle",
    "the White House": "Washington",
    "the Great Sphinx": "Cairo",
    "the Blue Mosque": "Istanbul",
    "the Opera House": "Sydney",
    "the Grand Palace": "Bangkok",
}

# Sentences that documentation likes to begin; learned by heart, so that a continuation reads as one.
FAMILIAR = (
    "Hello world.",
    "Hello, my name is Mary.",
    "The cat sat on the mat.",
    "The dog ran through the park.",
    "The quick brown fox jumps over the lazy dog.",
    "Once upon a time there was a king who lived in a castle.",
    "It was the best of times, it was the worst of times.",
    "To be, or not to be, that is the question.",
)
