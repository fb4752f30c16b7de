"""Rules of thumb for the gender of French, Spanish and German nouns.

Phrases need an article and the endings of adjectives. English has neither, so a wrong guess makes a phrase such as
people mistype it, with the right translation.
"""

import re
from typing import Literal

__all__ = ["Gender", "gender_of"]

Gender = Literal["m", "f", "n"]

FRENCH_F = re.compile(r"([tsx]ion|té|ée|e|eur froide)$")
FRENCH_M = re.compile(r"(age|isme|ège|tre|cle|ble|phone|scope|aire|gramme|lycée|musée|aphe|ide|ope|tère|xe)$")
FRENCH_IRREGULAR = {
    "f": "main fleur souris croix dent maison chanson mer peau voix fourmi clé clef tour noix brebis nuit boisson "
    "plage forêt image page cage loutre "
    "balle table carte cravate fenêtre fable fin cuillère paire raquette lettre montre huître poutre cible",
    "m": "arbre livre homme singe crabe casque masque verre disque symbole signe poivre beurre gorille crocodile "
    "triangle rectangle losange coude pouce ventre squelette ange mage elfe génie zombie robinet nuage groupe globe "
    "parapluie trèfle téléphone microphone violoncelle cimetière temple dôme stade pique poulpe calamar zèbre phoque "
    "dromadaire hippopotame rhinocéros légume concombre champignon fromage sandwich spectacle drapeau sceau "
    "tigre dinosaure prince fantôme crâne pirate vampire "
    "insecte moine juge garde gymnase parachute tube vase gaz chêne navire bonhomme couple",
}
SPANISH_F = re.compile(r"(a|ción|sión|dad|tud|ez|umbre)$")
SPANISH_IRREGULAR = {
    "m": "mapa planeta cometa problema panda koala gorila puma sofá día poeta pijama emblema diploma tema trapecista "
    "pez pirata ideograma fantasma paraguas ajedrez arroz lápiz",
    "f": "mano flor luz cruz nariz imagen llave torre nube noche carne leche nave red sal serpiente gente mujer sangre "
    "nieve moto foto radio calle fuente clase torre cruz voz catedral pared bici",
}
GERMAN_F = re.compile(
    r"(e|ung|heit|keit|schaft|ion|tät|ur|(?:er|ld|at|ist|rzt|log|nt)in|[^w]ei|hand|maus|kuh|gans|frucht|wurst|burg|stadt|welt|uhr|tür|bank|nacht"
    r"|milch|butter|feder|leiter|mutter|schwester|tochter|trommel|gabel|kartoffel|insel|zwiebel|muschel|schüssel|frau"
    r"|nuss|faust|post|pflicht|fee|person|mango|ananas|kiwi|kamera|pizza|bar|axt|nadel|ampel|form|figur"
    r"|\bwand|mauer|schachtel|königin|prinzessin|hochzeit|auster)$",
    re.IGNORECASE,
)
GERMAN_M = re.compile(
    r"(affe|löwe|hase|drache|käse|junge|rabe|falke|buchstabe|riese|matrose|bär|kunde|welpe|\bsee|baum|kuchen|kaffee"
    r"|\btee)$",
    re.IGNORECASE,
)
GERMAN_N = re.compile(
    r"(chen|lein|um|ment|gesicht|zeichen|symbol|herz|haus|auto|tier|boot|rad|buch|schild|quadrat|dreieck|auge|ohr|kind"
    r"|baby|brot|schwein|pferd|schaf|huhn|kamel|känguru|krokodil|emoji|telefon|glas|bett|band|horn|schwert|feuer|wasser"
    r"|licht|spiel|kleid|hemd|messer|zelt|flugzeug|schiff|taxi|blatt|eis|fleisch|obst|gemüse|fenster|papier|geld|mal"
    r"|werk|bild|zebra|lama|monster|gespenst|radio|mikrofon|konzert|ende|ei|nest|klavier|saxofon|paket|netz|gehirn|bein"
    r"|gebäude|hotel|hospital|krankenhaus|büro|schloss|einhorn|nashorn|eichhörnchen|dach|gras|stinktier|faultier|reh)$",
    re.IGNORECASE,
)


def gender_of(language: str, noun: str) -> Gender:
    """The gender of a noun in `fr`, `es` or `de`, by its ending and by lists of exceptions; masculine if no rule fits.

    noun: one word, the head of the phrase.
    """
    word = noun.lower()
    if language == "de":
        for rule, gender in ((GERMAN_M, "m"), (GERMAN_N, "n"), (GERMAN_F, "f")):
            if rule.search(word):
                return "m" if gender == "m" else "n" if gender == "n" else "f"
        return "m"
    irregular, feminine = (FRENCH_IRREGULAR, FRENCH_F) if language == "fr" else (SPANISH_IRREGULAR, SPANISH_F)
    for one in (word, word.removesuffix("s")):
        if one in irregular["m"].split():
            return "m"
        if one in irregular["f"].split():
            return "f"
    word = word.removesuffix("s")
    if language == "fr" and FRENCH_M.search(word):
        return "m"
    return "f" if feminine.search(word) else "m"
