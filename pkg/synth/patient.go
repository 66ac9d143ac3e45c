package synth

var givenNames = []string{
	"Alder", "Amber", "Aspen", "Basil", "Birch", "Bramble", "Cedar", "Clover", "Cobalt", "Coral", "Cricket", "Dahlia",
	"Ember", "Fennel", "Fern", "Flint", "Garnet", "Ginger", "Hazel", "Heron", "Indigo", "Jasper", "Juniper", "Larch",
	"Linden", "Lark", "Maple", "Marble", "Nettle", "Opal", "Pebble", "Quartz", "Robin", "Rowan", "Saffron", "Sorrel",
	"Tamarack", "Thistle", "Wren", "Yarrow",
}

var familyNames = []string{
	"Ampleton", "Betatest", "Canary", "Demoson", "Dummerston", "Exampler", "Fauxley", "Fixtureman", "Imaginer",
	"Inventor", "Loremsen", "Makebelieve", "Mockford", "Nullman", "Notreal", "Placeholm", "Pretender", "Protoson",
	"Sampleton", "Sandboxer", "Shamwell", "Stubbins", "Synthesen", "Testwell", "Trialsson", "Unrealsen",
}

type name struct{ given, family string }

// newName returns an invented name. Its digits show that it is not the name of a real person.
func newName(r *rng) name {
	return name{
		given:  *pick(r, givenNames) + string(appendInt(nil, r.between(100, 999))),
		family: *pick(r, familyNames) + string(appendInt(nil, r.between(10, 99))),
	}
}

// illness is a patient's case of a disease.
type illness struct {
	*disease
	ref   reference
	onset instant
}

// chart is the record of the patient being written, with the data of earlier resources that later ones need.
type chart struct {
	out    *block
	pool   *pool
	rng    rng
	ids    ids
	index  int
	self   reference // the Patient, without a display: names stay in the Patient
	name   name
	female bool
	born   instant
	begin  instant // of the record
	end    instant // of the record: the present, or death
	died   bool
	region int
	town   string

	doctor   int       // number of the practitioner that the patient usually sees
	home     reference // the organization that the patient usually goes to
	team     reference
	related  reference // a RelatedPerson, when hasKin
	hasKin   bool
	implants int
	chronic  []illness
	height   int // adult height in mm
	shape    int // body mass index of the adult, in tenths
	smoker   int // index into smokingStatus
	drinking bool

	complete bool // one of the patients whose records have every type
	showcase bool // at this visit every chance comes true

	visit visit
}

func (c *chart) newID() uuid { return c.ids.next() }

func (c *chart) open(k kind, id uuid, updated instant, profile string) *line {
	return c.out.open(k, id, updated, profile)
}

func (c *chart) practitioner(number int) reference { return c.pool.practitioners[number] }

// age returns the patient's age at an instant, in full years.
func (c *chart) age(at instant) int { return int((at - c.born) / year) }

// write writes everything about the patient with the number index. It depends on the seed and the index only.
func (c *chart) write(out *block, p *pool, index int) {
	draws := newIDs(p.seed, drawSpace, uint64(index))
	*c = chart{
		out: out, pool: p, index: index, complete: index%10 == 0,
		rng: rng{state: draws.key.low},
		ids: newIDs(p.seed, uint64(patientKind), uint64(index)),
		// Keep the buffers of the previous patient.
		chronic: c.chronic[:0],
		visit:   visit{observations: c.visit.observations[:0]},
	}
	c.self = reference{kind: patientKind, id: c.newID()} // must be the first id: pool.patient relies on it
	c.settle()

	c.writePatient()
	c.writeCoverage()
	c.writeRelatedPersons()
	c.writeCareTeam()
	c.writeAllergies()
	c.writeProblems()
	c.writeCarePlan()
	c.writeVisits()
}

// chance is true with a probability in percent, and always in a showcase, so that an export has every kind of data.
func (c *chart) chance(percent int) bool { return c.rng.chance(percent) || c.showcase }

// settle draws the patient's attributes.
func (c *chart) settle() {
	r := &c.rng
	c.name = newName(r)
	c.female = r.chance(51)
	c.born = today - instant(r.between(20, 94*365))*day + instant(r.below(1440))*minute
	c.end = today - day
	if age := c.age(today); age > 40 && r.chance(age/12) {
		c.died = true
		c.end = today - instant(r.between(30, 3000))*day
	}
	if c.complete {
		c.born = today - instant(r.between(50*365, 80*365))*day
		c.died, c.end = false, today-day
	}
	c.begin = max(c.born+2*hour, c.end-instant(r.between(4*365, 14*365))*day)
	c.region = r.below(regions)
	c.town = townNames[c.region]
	c.doctor = practitionerIn(r, c.region)
	c.home = c.pool.clinic(c.region, r.below(2))
	c.height = r.around(1690, 130)
	if c.female {
		c.height -= 60
	}
	c.shape = r.around(265, 110)
	c.smoker = max(0, r.below(8)-4)
	c.drinking = r.chance(55)
}

var races = []concept{
	{"urn:oid:2.16.840.1.113883.6.238", "2106-3", "White"},
	{"urn:oid:2.16.840.1.113883.6.238", "2054-5", "Black or African American"},
	{"urn:oid:2.16.840.1.113883.6.238", "2028-9", "Asian"},
	{"urn:oid:2.16.840.1.113883.6.238", "1002-5", "American Indian or Alaska Native"},
	{"urn:oid:2.16.840.1.113883.6.238", "2076-8", "Native Hawaiian or Other Pacific Islander"},
}

var ethnicities = []concept{
	{"urn:oid:2.16.840.1.113883.6.238", "2186-5", "Not Hispanic or Latino"},
	{"urn:oid:2.16.840.1.113883.6.238", "2186-5", "Not Hispanic or Latino"},
	{"urn:oid:2.16.840.1.113883.6.238", "2135-2", "Hispanic or Latino"},
}

var languages = []concept{
	{"urn:ietf:bcp:47", "en-US", "English"},
	{"urn:ietf:bcp:47", "en-US", "English"},
	{"urn:ietf:bcp:47", "en-US", "English"},
	{"urn:ietf:bcp:47", "es", "Spanish"},
	{"urn:ietf:bcp:47", "zh", "Chinese"},
	{"urn:ietf:bcp:47", "vi", "Vietnamese"},
}

func (c *chart) writePatient() {
	const core = "http://hl7.org/fhir/us/core/StructureDefinition/"
	r := &c.rng
	gender, sex := "male", "M"
	if c.female {
		gender, sex = "female", "F"
	}
	race, ethnicity := pick(r, races), pick(r, ethnicities)
	l := c.open(patientKind, c.self.id, c.end-instant(r.below(int((c.end-c.begin)/2))), "us-core-patient")
	l.narrative(c.name.given, " ", c.name.family, ", ", gender, ". This person was made up.")
	for _, e := range [...]struct {
		name string
		code *concept
	}{{"us-core-race", race}, {"us-core-ethnicity", ethnicity}} {
		if e.name == "us-core-race" {
			l.raw(`,"extension":[`)
		} else {
			l.raw(`,`)
		}
		l.raw(`{"extension":[{"url":"ombCategory","valueCoding":`).coding(*e.code)
		l.raw(`},{"url":"text","valueString":"`, e.code.display, `"}],"url":"`, core, e.name, `"}`)
	}
	l.raw(`,{"url":"`, core, `us-core-birthsex","valueCode":"`, sex, `"}]`)
	l.raw(`,"identifier":[{"use":"usual","type":`)
	l.codeable(concept{terminology + "v2-0203", "MR", "Medical record number"})
	l.raw(`,"system":"`, ownNumbers, `mrn","value":"MRN`).digits(uint64(c.index), 10)
	l.raw(`"},`).identifier(ownNumbers+"member", "M", r.next()).raw(`]`)
	l.bool("active", !c.died)
	l.raw(`,"name":[{"use":"official","family":"`, c.name.family, `","given":["`, c.name.given, `"]`)
	if r.chance(8) {
		l.raw(`,"suffix":["Jr."]`)
	}
	l.raw(`}`)
	if r.chance(15) {
		l.raw(`,{"use":"old","family":"`, *pick(r, familyNames), `","given":["`, c.name.given, `"]`)
		l.period("period", c.born, c.begin).raw(`}`)
	}
	l.raw(`],"telecom":[`).phone(r.next(), "home")
	l.raw(`,{"system":"email","value":"patient`).int(c.index).raw(`@example.com","use":"home"}]`)
	l.str("gender", gender).day("birthDate", c.born)
	if c.died {
		l.when("deceasedDateTime", c.end)
	}
	l.raw(`,"address":[`).address(r.between(1, 9999), c.town, r.next()).raw(`]`)
	if c.age(today) >= 18 {
		status := terminology + "v3-MaritalStatus"
		l.concept("maritalStatus", *pick(r, []concept{
			{status, "M", "Married"}, {status, "S", "Never married"}, {status, "D", "Divorced"},
		}))
	}
	l.raw(`,"communication":[{"language":`).codeable(*pick(r, languages)).bool("preferred", true).raw(`}]`)
	l.refs("generalPractitioner", c.practitioner(c.doctor))
	l.ref("managingOrganization", c.home)
	l.close()
	c.writeProvenance(c.begin, c.home, c.practitioner(c.doctor), c.self)
}

func (c *chart) writeCoverage() {
	payer := c.pool.organizations[firstPayer+int(c.pool.payerDraw(c.index)%payerCount)]
	plan := concept{"https://nahdo.org/sopt", "512", "Commercial managed care, preferred provider"}
	if c.age(today) >= 65 {
		plan = concept{"https://nahdo.org/sopt", "1", "Medicare"}
	}
	years := 1 + c.rng.below(2)
	for i := range years {
		status := "active"
		from := c.end - instant(years-i)*year
		if i < years-1 || c.died {
			status = "cancelled"
		}
		l := c.open(coverageKind, c.newID(), max(from, c.born)+day, "us-core-coverage")
		l.raw(`,"identifier":[{"type":`).codeable(concept{terminology + "v2-0203", "MB", "Member number"})
		l.str("system", ownNumbers+"member").raw(`,"value":"M`).digits(c.rng.next(), 10).raw(`"}]`)
		l.str("status", status).concept("type", plan)
		l.raw(`,"subscriberId":"S`).digits(c.rng.next(), 9).raw(`"`)
		l.ref("subscriber", c.self).ref("beneficiary", c.self)
		l.concept("relationship", concept{terminology + "subscriber-relationship", "self", "The patient"})
		l.period("period", max(from, c.born), max(from+year, c.born+day))
		l.refs("payor", payer)
		l.raw(`,"class":[{"type":`).codeable(concept{terminology + "coverage-class", "group", "Group"})
		l.raw(`,"value":"G`).digits(c.rng.next(), 5).raw(`","name":"Invented plan"}]`)
		l.close()
	}
}

func (c *chart) writeRelatedPersons() {
	kin := [...]concept{
		{roleCodes, "MTH", "Mother"}, {roleCodes, "FTH", "Father"}, {roleCodes, "SPS", "Spouse"},
		{roleCodes, "CHILD", "Child"}, {roleCodes, "NBOR", "Neighbour"},
	}
	count := c.rng.below(3)
	if c.age(today) < 18 {
		count = 2
	}
	if c.complete {
		count = 2
	}
	for i := range count {
		relation := kin[2+c.rng.below(3)]
		if c.age(today) < 18 {
			relation = kin[i]
		}
		person := newName(&c.rng)
		self := reference{relatedKind, c.newID(), person.given + " " + person.family}
		l := c.open(relatedKind, self.id, c.begin+day, "us-core-relatedperson")
		l.bool("active", true).ref("patient", c.self).concepts("relationship", relation)
		l.raw(`,"name":[{"family":"`, person.family, `","given":["`, person.given, `"]}]`)
		l.raw(`,"telecom":[`).phone(c.rng.next(), "mobile").raw(`]`)
		l.raw(`,"address":[`).address(c.rng.between(1, 999), c.town, c.rng.next()).raw(`]`)
		l.close()
		c.related, c.hasKin = self, true
	}
}
