"""Plain questions in many languages. Those in Latin script show their language by their words."""

from __future__ import annotations

_KANA = frozenset({"CJK", "HIRAGANA", "KATAKANA"})
OTHER_SCRIPTS: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "Chinese": (
        frozenset({"CJK"}),
        ("天空为什么是蓝色的", "心脏病发作的症状有哪些", "怎样种植西红柿",
         "火山是怎么形成的", "感冒了吃什么药好", "北京天气"),
    ),
    "Chinese, traditional": (
        frozenset({"CJK"}),
        ("為什麼天空是藍色的", "如何學習寫程式", "臺北有什麼好吃的", "糖尿病患者的飲食", "火山如何形成", "颱風"),
    ),
    "Japanese": (
        _KANA,
        ("空はなぜ青いのですか", "心臓発作の症状", "トマトの植え方",
         "火山はどうやってできるのか", "かぜに効く薬はどれ", "おいしいラーメン"),
    ),
    "Korean": (
        frozenset({"HANGUL"}),
        ("하늘은 왜 파란가요", "심근경색 증상", "토마토 심는 시기",
         "화산은 어떻게 생기나요", "감기에 좋은 음식", "서울 날씨"),
    ),
    "Russian": (
        frozenset({"CYRILLIC"}),
        ("почему небо голубое", "симптомы инфаркта", "когда сажать помидоры",
         "как образуются вулканы", "чем лечить простуду", "погода в Москве"),
    ),
    "Ukrainian": (
        frozenset({"CYRILLIC"}),
        ("чому небо блакитне", "симптоми інфаркту", "коли садити помідори",
         "як утворюються вулкани", "що їсти при застуді", "погода у Львові"),
    ),
    "Arabic": (
        frozenset({"ARABIC"}),
        ("لماذا السماء زرقاء", "أعراض النوبة القلبية", "متى تزرع الطماطم",
         "كيف تتكون البراكين", "علاج نزلات البرد", "الطقس في القاهرة"),
    ),
    "Persian": (
        frozenset({"ARABIC"}),
        ("چرا آسمان آبی است", "علائم سکته قلبی", "زمان کاشت گوجه فرنگی",
         "آتشفشان چگونه به وجود می‌آید", "درمان سرماخوردگی", "هوای تهران"),
    ),
    "Hebrew": (
        frozenset({"HEBREW"}),
        ("למה השמיים כחולים", "תסמינים של התקף לב", "מתי שותלים עגבניות",
         "איך נוצרים הרי געש", "טיפול בהצטננות", "מזג האוויר בירושלים"),
    ),
    "Greek": (
        frozenset({"GREEK"}),
        ("γιατί ο ουρανός είναι μπλε", "συμπτώματα εμφράγματος", "πότε φυτεύουμε ντομάτες",
         "πώς σχηματίζονται τα ηφαίστεια", "θεραπεία κρυολογήματος", "καιρός στην Αθήνα"),
    ),
    "Hindi": (
        frozenset({"DEVANAGARI"}),
        ("आकाश नीला क्यों है", "दिल का दौरा पड़ने के लक्षण", "टमाटर कब लगाएं",
         "ज्वालामुखी कैसे बनते हैं", "सर्दी जुकाम का इलाज", "दिल्ली का मौसम"),
    ),
    "Bengali": (
        frozenset({"BENGALI"}),
        ("আকাশ নীল কেন", "হার্ট অ্যাটাকের লক্ষণ", "টমেটো কখন লাগাতে হয়",
         "আগ্নেয়গিরি কীভাবে তৈরি হয়", "সর্দির ওষুধ", "ঢাকার আবহাওয়া"),
    ),
    "Tamil": (
        frozenset({"TAMIL"}),
        ("வானம் ஏன் நீலமாக இருக்கிறது", "மாரடைப்பு அறிகுறிகள்", "தக்காளி எப்போது நடுவது",
         "எரிமலைகள் எவ்வாறு உருவாகின்றன", "சளிக்கு மருந்து", "சென்னை வானிலை"),
    ),
    "Thai": (
        frozenset({"THAI"}),
        ("ทำไมท้องฟ้าถึงเป็นสีฟ้า", "อาการหัวใจวาย", "ปลูกมะเขือเทศเดือนไหน",
         "ภูเขาไฟเกิดขึ้นได้อย่างไร", "ยาแก้หวัด", "อากาศเชียงใหม่"),
    ),
    "Georgian": (
        frozenset({"GEORGIAN"}),
        ("რატომ არის ცა ლურჯი", "ინფარქტის სიმპტომები", "როდის ირგვება პომიდორი",
         "როგორ წარმოიქმნება ვულკანი", "გაციების მკურნალობა", "ამინდი თბილისში"),
    ),
    "Amharic": (
        frozenset({"ETHIOPIC"}),
        ("ሰማይ ለምን ሰማያዊ ሆነ", "የልብ ድካም ምልክቶች", "ቲማቲም መቼ ይተከላል", "እሳተ ገሞራ እንዴት ይፈጠራል", "የጉንፋን መድኃኒት", "የአዲስ አበባ አየር"),
    ),
}  # fmt: skip
"""For each language of another script: the scripts of its words, and questions that a user might ask."""

LATIN_LANGUAGES: dict[str, tuple[str, ...]] = {
    "English": (
        "why is the sky blue", "what are the symptoms of a heart attack", "when to plant tomatoes",
        "how do volcanoes form", "what to eat when you have a cold", "the weather in London",
    ),
    "French": (
        "pourquoi le ciel est bleu", "quels sont les symptômes d'un infarctus", "quand planter les tomates",
        "comment se forment les volcans", "que manger quand on a un rhume", "quel temps fait-il à Paris",
    ),
    "German": (
        "warum ist der Himmel blau", "was sind die Anzeichen für einen Herzinfarkt",
        "wann pflanzt man Tomaten und wie",
        "wie entstehen die Vulkane der Erde", "was hilft gegen eine Erkältung", "wie wird das Wetter in Köln",
    ),
    "Spanish": (
        "por qué el cielo es azul", "cuáles son los síntomas de un infarto", "cuándo se plantan los tomates",
        "cómo se forman los volcanes", "qué comer cuando se tiene un resfriado", "qué tiempo hace en Madrid",
    ),
    "Portuguese": (
        "por que o céu é azul", "quais são os sintomas de um infarto", "quando se planta tomate em vasos",
        "como se formam os vulcões", "o que comer quando se está com gripe", "como está o tempo em Lisboa",
    ),
    "Italian": (
        "perché il cielo è blu", "quali sono i sintomi di un infarto", "quando e come si piantano i pomodori",
        "che cosa sono i vulcani e come si formano", "cosa mangiare quando si ha il raffreddore",
        "che tempo fa oggi nella città di Roma",
    ),
    "Dutch": (
        "waarom is de lucht blauw", "wat zijn de symptomen van een hartaanval",
        "wanneer kan je tomaten het beste planten",
        "hoe ontstaan de vulkanen op aarde", "wat kun je eten bij een verkoudheid",
        "wat voor weer wordt het in Utrecht",
    ),
    "Swedish": (
        "varför är himlen blå", "vad är symptomen på en hjärtattack", "när ska man plantera tomater",
        "hur bildas en vulkan och varför", "vad ska man äta när man är förkyld",
        "hur blir vädret i Göteborg och Malmö",
    ),
    "Danish": (
        "hvorfor er himlen blå om dagen", "hvad er symptomerne på et hjerteanfald", "hvornår skal man plante tomater",
        "hvordan bliver en vulkan til", "hvad skal man spise når man er forkølet",
        "hvordan er vejret i Århus og Odense",
    ),
    "Polish": (
        "dlaczego niebo jest niebieskie", "jakie są objawy zawału serca", "kiedy i jak sadzić pomidory na balkonie",
        "jak się tworzą wulkany", "co jeść przy przeziębieniu", "jaka jest pogoda w Łodzi",
    ),
    "Czech": (
        "proč je nebe modré", "jaké jsou příznaky infarktu", "kdy se sází rajčata",
        "jak vznikají sopky na Zemi a proč", "co jíst při nachlazení", "jaké je počasí v Brně",
    ),
    "Turkish": (
        "gökyüzü neden mavi ve bulut ne", "kalp krizi belirtileri nelerdir ve nasıl anlaşılır",
        "domates ne zaman ve nasıl ekilir",
        "yanardağlar nasıl oluşur", "grip için ne yemek daha iyi", "İstanbul için bugün hava nasıl",
    ),
    "Indonesian": (
        "mengapa langit berwarna biru dan apa itu awan",
        "apa saja gejala serangan jantung dan bagaimana mengatasinya",
        "kapan waktu yang tepat untuk menanam tomat", "bagaimana gunung api dapat terbentuk",
        "apa yang harus dimakan untuk flu", "bagaimana cuaca di Jakarta",
    ),
    "Vietnamese": (
        "tại sao bầu trời có màu xanh", "triệu chứng của nhồi máu cơ tim", "khi nào trồng cà chua",
        "núi lửa hình thành như thế nào", "bị cảm nên ăn gì", "thời tiết ở Hà Nội",
    ),
    "Finnish": (
        "miksi taivas on sininen ja mitä on valo", "mitkä ovat sydänkohtauksen oireet ja mitä tehdä",
        "milloin ja miten istuttaa tomaatit",
        "miten tulivuori syntyy ja missä", "mitä kannattaa syödä kun on flunssa", "millainen sää on ja missä sataa",
    ),
    "Hungarian": (
        "miért kék az ég", "melyek a szívroham tünetei", "mikor kell ültetni a növényeket és a bokrot",
        "hogyan keletkezik a tűzhányó és a gejzír", "mit együnk megfázás esetén", "milyen idő van Győrött és Pécsett",
    ),
}  # fmt: skip
"""For each language in Latin script: questions that a user might ask, whose words show the language."""
