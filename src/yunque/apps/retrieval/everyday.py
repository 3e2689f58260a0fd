"""Everyday words: people wrap their questions in them, and they say little about the topic.

A question is judged by its other words. Verbs are given once and found by their stem; irregular forms are given too.
Names of places say where, not what, so they weigh little as well, unless the documents speak of nothing else.
"""

EVERYDAY_ES = """
abajo abrir acabar acerca aclarar aconsejar acompanar acordar actual adelante afectar agradecer aguantar ajeno
alcanzar alto amable amigo amiga amigos anda andar apenas apetecer apretado aproximadamente apuro arreglar
arriba asunto asustar atras aunque avisar ayer ayudar ayuden bajar basta bastar bonito bueno buscar cabe caben
caber cabia cabezon caer caso cerca cercano chulo claro colar coger cojo comentar comprobar concretamente
conmigo conocer conozco conseguir considerar contar contigo convenir correcto correr costumbre creer creo cual
cumplir curiosidad curioso dado dame dan de den dar deja dejar demas demasiado desear despacio despues detras di
dias dificil diferente digo distinto dudar duro echar ejemplo ellos empezar encima enorme ensenar entender
entero enterar enviar envian escribir escuchar espera esperar estupendo exacto existir explicar facil faltar
familia feliz fijo fin final finalmente forma fuerte funcionar genial gente gordo grande gracias guapo gustar
haber haberlo haberla habeis habra habria habremos haceis hacerlo hago haya hecho hora horas hoy ido igual
imaginar importar intentar interesar iremos iria ir izquierda jamas joven juntar kiero kieren xfa porfa porfi
largo lejos lento libre ligero listo llamar llegado llegar llevado limpio malo manana mandar manejar manera
maravilla marcha marcharse me mejor mencionar meter mirar mio mismo mitad molestar momento montar montaje morir
mostrar mover muestra mundo narices necesitar ningun nombre normal nosotros notar novedad novio novia nuestro
nuevo numero obligar obligado ocupar ocurrir olvidar opinar oir oye parar parecer parezca parte partir pasado
pasar pasta peor pedir pensar pensaba pequeno permitir pese pillar pilla pillan planear planeo poco poner pongo
porque posible precisar preciso preferir preguntar preocupar preparar presentar presento presentarme primero
principal probable probar proceder procedimiento prometer pronto propio proximo pueblo punto quedar quejar quiza
quizas quitar rapido raro rato razon realizar recibir recoger recomendar recordar referir regla normativa norma
regresar repetir resolver resultar reunir rollo saber sabe sabeis sacar salir seguir segun seguro semejante
senalar sentar sentir senor senora separar ser servir simple sitio situacion sobrar soler suelo soltar solucion
solucionar sonar suceder suelen suponer supuesto super tal tampoco tardar tarde temer tener tendria tendre tenga
terminar tio tia tocar tomar total trabajar traer tranquilo tras tratar unico usar usual utilizar vacaciones
vale valer vamos varios venga vengo venir ver vemos verdad veo vez viaje viene vienen visitar vivir volver
vosotros vuelta vuelvo finde verano invierno navidad agosto julio junio semana abuela abuelo madre padre marido
mujer esposa esposo suegra suegro primo prima cunado cunada mama papa yaya yayo tios nieto pareja companero
companera jefe vecino vecina prohibicion maximo minimo unos unas cuantos cuanta pa pal na q k xq pq tb tmb dnd
cdo cuant kuanto ke cuando reglas acaso tantos ambos ambas seis siete ocho nueve diez once doce quince veinte
treinta cuarenta cincuenta cien media medio dije dijo dijeron dicho dice dicen diga digan decis decidme contesto
tuve tuvo tuvieron tuvimos estuve estuvo estuvieron estuvimos pude pudo pudieron puse puso pusieron puesto
pusimos quise quiso supe supo hice hizo hicieron hicimos vine vino vinieron traje trajo trajeron dio dieron
dimos vi vio vieron vimos visto viendo veia fuera fuesen fueran estaria estare estaremos estaran habia hubo
hubiera hubiese seria seran seremos salgo salga salgan salio salimos salieron salgamos entro entrar entran entra
entre entramos pido pides pidio pidieron sigue sigo siguen siguiendo consigo consigue oigo ponga pongan ponerlo
ponerla ponermelo llevaron llevamos traemos vaya vayan vayamos iban iba ibamos eramos dandome nacio nacer nacido
vivo viven crecer creci ganas gana ganar viejo vieja rico pobre lleno llena vacio roto corto corta ancho ancha
rapida lenta segura tranquila cansado cansada nervioso nerviosa contento triste enfadado feo fea bonita majo
simpatico lista tonto horrible terrible fatal importante increible extrano rara complicado sencillo sencilla
suficiente incorrecto necesario imposible perfecto perfecta especial temprano tardisimo enseguida inmediatamente
normalmente generalmente simplemente probablemente absolutamente completamente alla aca aqui ahi afuera dentro
adentro enfrente junto lugar lado alrededor lunes martes miercoles jueves viernes sabado domingo enero febrero
marzo abril mayo septiembre octubre noviembre diciembre primavera otono mediodia medianoche noche anoche
anteayer siglo fiestas fiesta puente festivo cumpleanos boda cualquiera ninguna ninguno alguien nadie montones
monton trozo pieza porcion suerte culpa miedo pena susto lio follon faena puneta demonios carajo mierda joder
caramba diablos brazo pierna mano cabeza ojo cara cuerpo pelo casa calle mantener decidir discutir evitar
confiar averiguar comprender disfrutar depender pretender sugerir responder responderme referirse confirmar
verificar elegir aprovechar romper cayo cayeron subir subimos subi bajo bajamos cuidar cuide cuida cuiden gafas
gorra bufanda vestir persona humano senoras hombre chaval tipo cobrais cobrar gasto gastar costar dinerillo
pavos maximos detalle detalles aplicar aplica corresponder corresponde contratar
"""

EVERYDAY_EN = """
according actual actually add additional advance advice affect afraid agree ahead aloud already alright although
amount anyway apparently appear approach approximately around arrange arrive aside assume attempt aware awful
away awkward back bad basically bear become begin behave believe belong beside bit bother bring bloke bottom
brief busy call care careful case cause certain certainly chance cheap cheers choose clear clearly come
comfortable common complete completely confirm confused consider contain correct count course create curious
current currently daily day deal dear decide definitely depend describe detail details different difficult
directly discover discuss drop due during earn easily easy effectively else enormous ensure enter entire
especially essentially evening eventually everybody everyone exact exactly example except exceed exist expect
experience explain explicitly extremely fact fail fair fairly fall familiar far fast feel figure final finally
find fine finish fit fix follow forget form former forward frankly friend friends full funny further generally
gentle glad grab great group guess guy guys half hang happen happy hard hate hear heard help hello hey hit hold
holiday holidays home honestly hope huge hurry idea ideal imagine immediately important impossible inform
information inside instead intend interested involve issue join keen keep kind know known large last lately
later lay lead leave left legal length let level like likely list listen little live long longer look loads lots
love lovely low main mainly manage matter matters maximum mean mention mess mind minimum minute moment month
morning mostly move much naturally near nearly necessary nervous next nice night nobody none nope normal
normally note notice obtain obvious obviously occur odd officially often okay old ones ongoing ordinary original
otherwise ought outside overall pack packed partly particular particularly pass past perhaps perfect permit
personally pick place plan please pleased plenty point policy poor popular possible possibly potentially
precisely prefer prepare present pretty previous previously prior probably problem procedure process properly
provide pull purpose push quick quickly quid quite rather reach read ready real really reason reasonable
recently recommend regarding regardless regular regularly regulation regulations relate remain remember remind
repeat require rest result return right roughly round rule rules run safe safely say seem seems seen send
separate serious set several shall share short show simple simply since sit situation slightly slow small solve
somehow someone sometimes somewhere soon sorry sort sound speak specific specifically spend split stand start
state still stop strange strictly stuff stuck sudden suddenly suggest suitable suppose sure surely switch take
talk technically terms test than thinking thought throw till today together told tomorrow tonight top total
totally touch toward towards tried trip trouble true try turn type typical typically understand unfortunately
unless upset use useful usual usually various view visit wait walk wanna gonna gotta wanting watch week weekend
weird went whats wheres hows whos thats theres dont cant wont isnt doesnt didnt im ive id whole wide win wise
wish wonder word work world worried worry worth write yeah yep yesterday young summer winter christmas august
july june mother father mum mom dad husband wife grandad granddad grandma granny grandpa aunt uncle cousin
boyfriend girlfriend partner mate flatmate flatmates roommate colleague boss neighbour buddy in-law mine theirs
ours someones whoever whenever wherever however zero four five six seven eight nine ten eleven twelve fifteen
twenty thirty forty fifty hundred couple ages said saying telling ago knew came gave given saw did done made
felt met kept brought bought spent wrote written spoke spoken sent sold stood fell fallen broke held lost paid
ran sat slept took taken wore worn won began begun became chose chosen drove driven ate eaten flew flown forgot
grew grown nothing something everything everywhere nowhere anywhere anymore almost alone afterwards never ever
rarely seldom barely hardly twice once better best worse worst good nicer bigger smaller larger cheaper heavier
shorter higher lower biggest largest smallest latest earliest beautiful ugly stupid silly crazy mad angry tired
scared excited surprised disappointed embarrassed lucky unlucky lazy quiet loud dirty clean empty cool warm hot
cold dry wet soft thick thin deep straight sharp strong weak rich fresh smart clever proud sad lonely monday
tuesday wednesday thursday friday saturday sunday january february march april september october november
december spring autumn noon midnight midday birthday wedding party afternoon life house street bedroom kitchen
door wall floor roof arm leg head hand foot face eye eyes hair body absolutely very realize realise promise
prove insist pretend persuade convince hesitate regret forgive blame succeed avoid prevent escape catch lift
carry drag climb jump wash cook wear hide smell taste kick hurt english french german spanish middle centre
center corner piece bunch handful glasses hat scarf shoes socks clothes shirt fellow lad lass dude mates chap
wrong til undo swear euros bucks pounds dollars max min allow allowance entitled eligible apply applies cover
covered
"""

PLACES = """
madrid barajas barcelona malaga sevilla seville bilbao valencia alicante mallorca palma ibiza menorca tenerife
canarias canary lanzarote fuerteventura gran canaria asturias santiago coruna vigo granada zaragoza murcia
almeria jerez badajoz melilla ceuta santander paris lyon niza nice marsella marseille londres london gatwick
heathrow manchester edimburgo edinburgh dublin irlanda ireland lisboa lisbon oporto porto portugal roma rome
milan milano venecia venice napoles naples florencia florence italia italy berlin munich francfort frankfurt
hamburgo hamburg alemania germany viena vienna austria zurich ginebra geneva suiza switzerland bruselas brussels
belgica belgium amsterdam holanda netherlands praga prague budapest varsovia warsaw polonia poland atenas athens
grecia greece copenhague copenhagen estocolmo stockholm oslo helsinki francia france espana spain europa europe
marrakech marrakesh casablanca rabat tanger tangier fez agadir marruecos morocco
"""
