package synth

// kind is a resource type of the population.
type kind uint8

const (
	allergyKind kind = iota
	appointmentKind
	carePlanKind
	careTeamKind
	conditionKind
	coverageKind
	deviceKind
	reportKind
	documentKind
	encounterKind
	goalKind
	groupKind
	immunizationKind
	locationKind
	medicationKind
	dispenseKind
	prescriptionKind
	observationKind
	organizationKind
	patientKind
	practitionerKind
	roleKind
	procedureKind
	provenanceKind
	answersKind
	relatedKind
	orderKind
	specimenKind
	kinds // number of kinds
)

var kindNames = [kinds]string{
	"AllergyIntolerance", "Appointment", "CarePlan", "CareTeam", "Condition", "Coverage", "Device",
	"DiagnosticReport", "DocumentReference", "Encounter", "Goal", "Group", "Immunization", "Location",
	"Medication", "MedicationDispense", "MedicationRequest", "Observation", "Organization", "Patient",
	"Practitioner", "PractitionerRole", "Procedure", "Provenance", "QuestionnaireResponse", "RelatedPerson",
	"ServiceRequest", "Specimen",
}

// String returns the name of the resource type.
func (k kind) String() string { return kindNames[k] }

// concept is one code with a display text of this package.
type concept struct{ system, code, display string }

// unit is a UCUM unit.
type unit struct{ display, code string }

// Code systems, with their URIs in FHIR.
const (
	loinc       = "http://loinc.org"
	snomed      = "http://snomed.info/sct"
	rxnorm      = "http://www.nlm.nih.gov/research/umls/rxnorm"
	cvx         = "http://hl7.org/fhir/sid/cvx"
	icd10       = "http://hl7.org/fhir/sid/icd-10-cm"
	nucc        = "http://nucc.org/provider-taxonomy"
	terminology = "http://terminology.hl7.org/CodeSystem/"
	coreCodes   = "http://hl7.org/fhir/us/core/CodeSystem/"
	actCodes    = terminology + "v3-ActCode"
	roleCodes   = terminology + "v3-RoleCode"
	npi         = "http://hl7.org/fhir/sid/us-npi"
	ownNumbers  = "https://records.example.org/" // prefix of this population's own identifier systems
)

// disease is a condition that patients can have. Its drugs are indices into drugTable.
type disease struct {
	code, icd    concept
	chronic      bool
	fromAge      int // years
	percent      int // of the patients of that age who have it, for a chronic one
	drugs        []int
	carePlan     concept // how it is managed, for a chronic one
	goal         string
	raisesBP     bool // makes blood pressure high
	raisesSugar  bool // makes glucose and haemoglobin A1c high
	raisesLipids bool // makes cholesterol high
}

var (
	selfCare     = concept{snomed, "384758001", "Looking after oneself"}
	bpEducation  = concept{snomed, "443402002", "Lifestyle teaching for high blood pressure"}
	sugarPlan    = concept{snomed, "698360004", "Self-management of diabetes"}
	lipidPlan    = concept{snomed, "736285004", "Management plan for blood lipids"}
	breathPlan   = concept{snomed, "53950000", "Breathing therapy"}
	asthmaPlan   = concept{snomed, "699728000", "Self-management of asthma"}
	jointPlan    = concept{snomed, "408869004", "Care of bones, joints and muscles"}
	allergyWatch = concept{snomed, "170836005", "Watching an allergy"}
)

var diseaseTable = []disease{
	{code: concept{snomed, "59621000", "High blood pressure"},
		icd:     concept{icd10, "I10", "Essential hypertension"},
		chronic: true, fromAge: 30, percent: 34, drugs: []int{0, 1, 2, 3}, carePlan: bpEducation, raisesBP: true,
		goal: "Blood pressure below 130 over 80"},
	{code: concept{snomed, "44054006", "Diabetes type 2"},
		icd:     concept{icd10, "E11.9", "Type 2 diabetes mellitus"},
		chronic: true, fromAge: 35, percent: 13, drugs: []int{4, 5}, carePlan: sugarPlan, raisesSugar: true,
		goal: "Haemoglobin A1c below 7 percent"},
	{code: concept{snomed, "55822004", "High blood lipids"}, icd: concept{icd10, "E78.5", "Hyperlipidemia"},
		chronic: true, fromAge: 35, percent: 28, drugs: []int{6, 7}, carePlan: lipidPlan, raisesLipids: true,
		goal: "LDL cholesterol below 100 mg per dL"},
	{code: concept{snomed, "195967001", "Asthma"}, icd: concept{icd10, "J45.909", "Asthma, uncomplicated"},
		chronic: true, fromAge: 4, percent: 9, drugs: []int{8, 9}, carePlan: asthmaPlan,
		goal: "No night woken by asthma in a month"},
	{code: concept{snomed, "13645005", "Chronic obstructive lung disease"}, icd: concept{icd10, "J44.9", "COPD"},
		chronic: true, fromAge: 50, percent: 8, drugs: []int{8, 9}, carePlan: breathPlan,
		goal: "Walk six minutes without a rest"},
	{code: concept{snomed, "235595009", "Reflux of stomach acid"},
		icd:     concept{icd10, "K21.9", "Gastro-esophageal reflux"},
		chronic: true, fromAge: 20, percent: 15, drugs: []int{10}, carePlan: selfCare,
		goal: "Heartburn on fewer than two days a week"},
	{code: concept{snomed, "40930008", "Underactive thyroid"}, icd: concept{icd10, "E03.9", "Hypothyroidism"},
		chronic: true, fromAge: 25, percent: 6, drugs: []int{11}, carePlan: selfCare,
		goal: "Thyrotropin in the reference range"},
	{code: concept{snomed, "35489007", "Depression"}, icd: concept{icd10, "F32.A", "Depression, unspecified"},
		chronic: true, fromAge: 14, percent: 11, drugs: []int{12, 13}, carePlan: selfCare,
		goal: "Mood score below five"},
	{code: concept{snomed, "239873007", "Worn knee joint"},
		icd:     concept{icd10, "M17.9", "Osteoarthritis of knee"},
		chronic: true, fromAge: 45, percent: 14, drugs: []int{14, 15}, carePlan: jointPlan,
		goal: "Climb one flight of stairs without pain"},
	{code: concept{snomed, "49436004", "Atrial fibrillation"},
		icd:     concept{icd10, "I48.91", "Atrial fibrillation"},
		chronic: true, fromAge: 55, percent: 7, drugs: []int{16, 17}, carePlan: selfCare,
		goal: "Resting heart rate below 100"},
	{code: concept{snomed, "53741008", "Coronary heart disease"},
		icd:     concept{icd10, "I25.10", "Coronary artery disease"},
		chronic: true, fromAge: 50, percent: 9, drugs: []int{18, 19, 6}, carePlan: selfCare, raisesLipids: true,
		goal: "Half an hour of walking on most days"},
	{code: concept{snomed, "64859006", "Thin bones"}, icd: concept{icd10, "M81.0", "Osteoporosis"},
		chronic: true, fromAge: 60, percent: 10, drugs: []int{20}, carePlan: jointPlan,
		goal: "No fall in six months"},
	{code: concept{snomed, "90560007", "Gout"}, icd: concept{icd10, "M10.9", "Gout, unspecified"},
		chronic: true, fromAge: 40, percent: 4, drugs: []int{21}, carePlan: selfCare,
		goal: "No attack of gout in a year"},
	{code: concept{snomed, "24079001", "Atopic eczema"}, icd: concept{icd10, "L20.9", "Atopic dermatitis"},
		chronic: true, fromAge: 0, percent: 8, drugs: []int{22}, carePlan: allergyWatch,
		goal: "Skin clear on most days"},
	{code: concept{snomed, "446096008", "Year-round hay fever"},
		icd:     concept{icd10, "J30.89", "Other allergic rhinitis"},
		chronic: true, fromAge: 5, percent: 12, drugs: []int{23}, carePlan: allergyWatch,
		goal: "Sleep through the night in spring"},

	{code: concept{snomed, "444814009", "Sinus infection by a virus"},
		icd:   concept{icd10, "J01.90", "Acute sinusitis"},
		drugs: []int{15}},
	{code: concept{snomed, "195662009", "Sore throat by a virus"},
		icd:   concept{icd10, "J02.9", "Acute pharyngitis"},
		drugs: []int{24}},
	{code: concept{snomed, "10509002", "Acute bronchitis"}, icd: concept{icd10, "J20.9", "Acute bronchitis"},
		drugs: []int{24, 8}},
	{code: concept{snomed, "65363002", "Infection of the middle ear"},
		icd:   concept{icd10, "H66.90", "Otitis media"},
		drugs: []int{25}},
	{code: concept{snomed, "43878008", "Streptococcal sore throat"},
		icd:   concept{icd10, "J02.0", "Strep pharyngitis"},
		drugs: []int{26}},
	{code: concept{snomed, "44465007", "Sprained ankle"}, icd: concept{icd10, "S93.409A", "Sprain of ankle"},
		fromAge: 5, drugs: []int{14, 15}},
	{code: concept{snomed, "70704007", "Sprained wrist"}, icd: concept{icd10, "S63.509A", "Sprain of wrist"},
		fromAge: 5, drugs: []int{15}},
	{code: concept{snomed, "65966004", "Broken forearm"}, icd: concept{icd10, "S52.90XA", "Fracture of forearm"},
		fromAge: 3, drugs: []int{24, 27}},
	{code: concept{snomed, "62106007", "Concussion, stayed conscious"},
		icd: concept{icd10, "S06.0X0A", "Concussion without loss of consciousness"}, fromAge: 5, drugs: []int{24}},
	{code: concept{snomed, "38822007", "Bladder infection"}, icd: concept{icd10, "N30.90", "Cystitis"},
		fromAge: 12, drugs: []int{28}},
	{code: concept{snomed, "271737000", "Anaemia"}, icd: concept{icd10, "D64.9", "Anemia, unspecified"},
		drugs: []int{29}},
	{code: concept{snomed, "6142004", "Influenza"},
		icd:   concept{icd10, "J11.1", "Influenza with respiratory signs"},
		drugs: []int{24}},
	{code: concept{snomed, "840539006", "COVID-19"}, icd: concept{icd10, "U07.1", "COVID-19"}, drugs: []int{24}},
	{code: concept{snomed, "25064002", "Headache"}, icd: concept{icd10, "R51.9", "Headache"}, fromAge: 5,
		drugs: []int{15}},
	{code: concept{snomed, "161891005", "Back pain"}, icd: concept{icd10, "M54.9", "Dorsalgia"}, fromAge: 16,
		drugs: []int{14}},
}

// acuteFrom is the index of the first acute disease in diseaseTable.
const acuteFrom = 15

// drug is a medication with its dosage.
type drug struct {
	code       concept
	form       concept
	ingredient concept
	dose       string // the instruction
	perDay     int
	days       int // supply of one prescription
}

var (
	tablet  = concept{snomed, "385055001", "Tablet"}
	capsule = concept{snomed, "385049006", "Capsule"}
	inhaler = concept{snomed, "420317006", "Inhaler"}
	liquid  = concept{snomed, "385023001", "Oral solution"}
	cream   = concept{snomed, "385099005", "Cream"}
	shot    = concept{snomed, "385219001", "Solution for injection"}
)

var drugTable = []drug{
	{concept{rxnorm, "314076", "lisinopril 10 mg tablet"}, tablet,
		concept{rxnorm, "29046", "lisinopril"}, "One tablet in the morning", 1, 90},
	{concept{rxnorm, "197361", "amlodipine 5 mg tablet"}, tablet,
		concept{rxnorm, "17767", "amlodipine"}, "One tablet once a day", 1, 90},
	{concept{rxnorm, "310798", "hydrochlorothiazide 25 mg tablet"}, tablet,
		concept{rxnorm, "5487", "hydrochlorothiazide"}, "One tablet in the morning", 1, 90},
	{concept{rxnorm, "979492", "losartan potassium 50 mg tablet"}, tablet,
		concept{rxnorm, "52175", "losartan"}, "One tablet once a day", 1, 90},
	{concept{rxnorm, "860975", "metformin hydrochloride 500 mg extended-release tablet"}, tablet,
		concept{rxnorm, "6809", "metformin"}, "One tablet twice a day with food", 2, 90},
	{concept{rxnorm, "106892", "human insulin 70/30 suspension for injection"}, shot,
		concept{rxnorm, "5856", "insulin"}, "Under the skin before breakfast and dinner", 2, 30},
	{concept{rxnorm, "314231", "simvastatin 10 mg tablet"}, tablet,
		concept{rxnorm, "36567", "simvastatin"}, "One tablet at night", 1, 90},
	{concept{rxnorm, "617312", "atorvastatin 20 mg tablet"}, tablet,
		concept{rxnorm, "83367", "atorvastatin"}, "One tablet at night", 1, 90},
	{concept{rxnorm, "2123111", "albuterol 0.09 mg per puff inhaler"}, inhaler,
		concept{rxnorm, "435", "albuterol"}, "Two puffs when breath is short, four times a day at most", 4, 30},
	{concept{rxnorm, "895994", "fluticasone propionate 0.044 mg per puff inhaler"}, inhaler,
		concept{rxnorm, "41126", "fluticasone"}, "Two puffs twice a day, rinse the mouth", 2, 60},
	{concept{rxnorm, "198051", "omeprazole 20 mg delayed-release capsule"}, capsule,
		concept{rxnorm, "7646", "omeprazole"}, "One capsule before breakfast", 1, 30},
	{concept{rxnorm, "966222", "levothyroxine sodium 0.075 mg tablet"}, tablet,
		concept{rxnorm, "10582", "levothyroxine"}, "One tablet before breakfast", 1, 90},
	{concept{rxnorm, "312941", "sertraline 50 mg tablet"}, tablet,
		concept{rxnorm, "36437", "sertraline"}, "One tablet in the morning", 1, 30},
	{concept{rxnorm, "310385", "fluoxetine 20 mg capsule"}, capsule,
		concept{rxnorm, "4493", "fluoxetine"}, "One capsule in the morning", 1, 30},
	{concept{rxnorm, "849574", "naproxen sodium 220 mg tablet"}, tablet,
		concept{rxnorm, "7258", "naproxen"}, "One tablet twice a day with food", 2, 14},
	{concept{rxnorm, "310965", "ibuprofen 200 mg tablet"}, tablet,
		concept{rxnorm, "5640", "ibuprofen"}, "One tablet up to three times a day with food", 3, 10},
	{concept{rxnorm, "855332", "warfarin sodium 5 mg tablet"}, tablet,
		concept{rxnorm, "11289", "warfarin"}, "One tablet in the evening, as the blood test says", 1, 30},
	{concept{rxnorm, "866412", "metoprolol succinate 100 mg extended-release tablet"}, tablet,
		concept{rxnorm, "6918", "metoprolol"}, "One tablet once a day", 1, 90},
	{concept{rxnorm, "309362", "clopidogrel 75 mg tablet"}, tablet,
		concept{rxnorm, "32968", "clopidogrel"}, "One tablet once a day", 1, 90},
	{concept{rxnorm, "243670", "aspirin 81 mg tablet"}, tablet,
		concept{rxnorm, "1191", "aspirin"}, "One tablet once a day", 1, 90},
	{concept{rxnorm, "904419", "alendronic acid 10 mg tablet"}, tablet,
		concept{rxnorm, "46041", "alendronate"}, "One tablet on rising, stay upright for half an hour", 1, 90},
	{concept{rxnorm, "197319", "allopurinol 100 mg tablet"}, tablet,
		concept{rxnorm, "519", "allopurinol"}, "One tablet once a day after food", 1, 90},
	{concept{rxnorm, "106258", "hydrocortisone 1 percent cream"}, cream,
		concept{rxnorm, "5492", "hydrocortisone"}, "Thinly on the skin twice a day", 2, 14},
	{concept{rxnorm, "311372", "loratadine 10 mg tablet"}, tablet,
		concept{rxnorm, "28889", "loratadine"}, "One tablet once a day", 1, 30},
	{concept{rxnorm, "313782", "acetaminophen 325 mg tablet"}, tablet,
		concept{rxnorm, "161", "acetaminophen"}, "Two tablets up to four times a day", 4, 7},
	{concept{rxnorm, "308182", "amoxicillin 250 mg capsule"}, capsule,
		concept{rxnorm, "723", "amoxicillin"}, "One capsule three times a day until used up", 3, 7},
	{concept{rxnorm, "834102", "penicillin V potassium 500 mg tablet"}, tablet,
		concept{rxnorm, "7984", "penicillin V"}, "One tablet twice a day for ten days", 2, 10},
	{concept{rxnorm, "856987", "acetaminophen 300 mg and hydrocodone 5 mg tablet"}, tablet,
		concept{rxnorm, "5489", "hydrocodone"}, "One tablet every six hours when in pain", 4, 5},
	{concept{rxnorm, "311989", "nitrofurantoin 5 mg per mL suspension"}, liquid,
		concept{rxnorm, "7454", "nitrofurantoin"}, "Twenty millilitres four times a day", 4, 5},
	{concept{rxnorm, "310325", "ferrous sulfate 325 mg tablet"}, tablet,
		concept{rxnorm, "24947", "ferrous sulfate"}, "One tablet every other day between meals", 1, 30},
}
