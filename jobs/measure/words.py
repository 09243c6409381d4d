"""Words for text prompts. All have five letters, so that a prompt is one look-up in a fixed-width table."""

WORDS = tuple(
    """
    above actor adapt admit adult after agent agree ahead alarm album alert alike allow alone along alter amber
    ample angle apple apply april arena argue arise armor array arrow aside asset audio avoid award aware bacon
    badge baker basic basin beach beard begin being bench berry birch birth blank blend block bloom board boast
    bonus boost bound brain brave bread break brick brief bring broad brook brown brush build bunch cabin cable
    camel canal candy cargo carry catch cause cedar chain chair chalk charm chart chase cheap check chess chest
    chief child civic claim class clean clear clerk cliff climb clock close cloth cloud coach coast coral could
    count court cover craft crane cream crisp crowd crown curve cycle daily dairy dance delay depth diary diner
    dozen draft drama dream dress drift drink drive eager eagle early earth elbow elder empty enjoy enter entry
    equal essay event every exact exist extra fable faith fancy fault favor feast fence ferry fever fiber field
    final first flame flash fleet float flood floor flour fluid focus force forge forth found frame fresh front
    frost fruit giant given glade glass globe glove grace grade grain grand grant grape graph grass great green
    greet group guard guess guest guide habit happy harsh hasty heart heavy hedge hello hobby honey honor horse
    hotel house human humor ideal image index inner input ivory jelly jewel joint judge juice kayak knife label
    large laser later laugh layer learn lemon level light limit linen local lodge logic loyal lunar lunch magic
    major maple march match maybe mayor medal melon mercy merge metal meter might minor model money month moral
    motor mount mouse mouth movie music nerve never night noble noise north novel nurse ocean offer often olive
    onion opera orbit order other outer owner paint panel paper party pasta patch pause peace peach pearl phase
    phone photo piano piece pilot pitch place plain plane plant plate plaza point polar porch pound power press
    price pride prime print prize proof proud pupil quack queen quest quick quiet quilt quote radar radio raise
    ranch range rapid reach ready realm rebel refer relax reply rider ridge right rigid river roast robin robot
    rough round route royal rural salad sauce scale scene scent score scout sense serve seven shade shape share
    sharp sheep sheet shelf shell shift shine shirt shore short sight silky skill sleep slice slide slope small
    smart smile smoke snack solar solid solve sound south space spare spark speak speed spice spoon sport stack
    staff stage stair stand start state steam steel stone store storm story sugar sunny sweet table tempo thank
    their theme there thick third three tiger title toast today token topic total touch tower track trade trail
    train treat trend trial truck trust truth tulip twice uncle under union unity until upper urban usual value
    vapor vault video visit vital vivid vocal voice wagon waste watch water wheat wheel where which white whole
    world worth wrist write young yield zebra
    """.split()  # noqa: SIM905 - a list of 500 quoted words would hide them
)
