package synth

// setting is a kind of visit.
type setting struct {
	class    concept
	sort     concept // the type of the Encounter
	weight   int     // share of the visits, of 100
	shortest instant
	longest  instant
	hospital bool
	virtual  bool
}

var settingTable = []setting{
	{class: concept{actCodes, "AMB", "Ambulatory"}, sort: concept{snomed, "162673000", "General examination"},
		weight: 36, shortest: 15 * minute, longest: 45 * minute},
	{class: concept{actCodes, "AMB", "Ambulatory"}, sort: concept{snomed, "185347001", "Visit for a problem"},
		weight: 32, shortest: 10 * minute, longest: 40 * minute},
	{class: concept{actCodes, "VR", "Virtual"}, sort: concept{snomed, "390906007", "Follow-up visit"},
		weight: 13, shortest: 5 * minute, longest: 25 * minute, virtual: true},
	{class: concept{actCodes, "AMB", "Ambulatory"}, sort: concept{snomed, "702927004", "Visit to urgent care"},
		weight: 8, shortest: 20 * minute, longest: 2 * hour},
	{class: concept{actCodes, "EMER", "Emergency"}, sort: concept{snomed, "50849002", "Admission to emergency room"},
		weight: 7, shortest: hour, longest: 9 * hour, hospital: true},
	{class: concept{actCodes, "IMP", "Inpatient"}, sort: concept{snomed, "183452005", "Stay in hospital"},
		weight: 4, shortest: day, longest: 7 * day, hospital: true},
}

// visit is the encounter being written.
type visit struct {
	*setting
	ref          reference
	start, end   instant
	number       int // of the practitioner
	doctor       reference
	place        reference
	organization reference
	cause        illness // the acute disease of the visit, when sick
	sick         bool
	observations []reference // made so far
}

// visitCounts has the numbers of visits by rank, per mille of the patients: half have fewer than 13, one in a thousand
// has hundreds. Numbers between two ranks are interpolated.
var visitCounts = [...]struct{ mille, visits int }{
	{0, 1}, {100, 3}, {250, 6}, {500, 13}, {750, 26}, {900, 46}, {970, 82}, {990, 150}, {998, 260}, {1000, 420},
}

func drawVisits(r *rng) int {
	at := r.below(1000)
	for i := 1; ; i++ {
		low, high := visitCounts[i-1], visitCounts[i]
		if at < high.mille {
			return low.visits + (high.visits-low.visits)*(at-low.mille)/(high.mille-low.mille)
		}
	}
}

// writeVisits writes the visits in chronological order, each with its resources.
func (c *chart) writeVisits() {
	span := int(c.end - c.begin)
	count := min(drawVisits(&c.rng), 1+span/int(2*day)) // on average at least two days apart
	if c.complete {
		count = max(count, 2)
	}
	for i := range count {
		c.showcase = c.complete && i < 2
		from, to := span*i/count, span*(i+1)/count
		c.startVisit(i, c.begin+instant(from+c.rng.below(max(1, to-from))))
		c.writeEncounter()
		c.writeIllness()
		c.writeVitals()
		c.writeSocialHistory()
		c.writeLaboratory()
		c.writePrescriptions()
		c.writeProcedures()
		c.writeImmunizations()
		c.writeDocuments()
		c.writeQuestionnaire()
		c.writeAppointment()
		if c.chance(55) {
			targets := [4]reference{c.visit.ref}
			count := 1 + copy(targets[1:], c.visit.observations)
			c.writeProvenance(c.visit.end, c.visit.organization, c.visit.doctor, targets[:count]...)
		}
	}
}

// startVisit draws the place, reason and practitioner of the number'th visit. The two visits of a showcase are a stay in
// hospital for an illness and a general examination: some resources are written only at one of them.
func (c *chart) startVisit(number int, at instant) {
	r := &c.rng
	v := visit{
		setting:      pickWeighted(r, settingTable, func(s *setting) int { return s.weight }),
		start:        at - at%minute,
		observations: c.visit.observations[:0],
	}
	if c.showcase {
		v.setting = &settingTable[len(settingTable)-1]
		if number == 1 {
			v.setting = &settingTable[0]
		}
	}
	length := v.shortest + instant(r.below(int((v.longest-v.shortest)/minute)))*minute
	v.end = min(v.start+length, c.end)
	v.ref = reference{kind: encounterKind, id: c.newID()}
	v.number = c.doctor
	if v.hospital || r.chance(30) {
		v.number = practitionerIn(r, c.region)
	}
	v.doctor = c.practitioner(v.number)
	which := r.below(2)
	if v.hospital {
		v.organization, v.place = c.pool.hospital(c.region, which), c.pool.location(c.region, which)
	} else {
		v.organization = c.home
		v.place = c.pool.location(c.region, 2+r.below((locationCount-idleLocations)/regions-2))
	}
	if c.chance(38) && !(c.showcase && number == 1) {
		v.cause, v.sick = c.drawIllness(v.start)
	}
	c.visit = v
}

func (c *chart) writeEncounter() {
	v := &c.visit
	l := c.open(encounterKind, v.ref.id, v.end+10*minute, "us-core-encounter")
	if c.rng.chance(30) {
		l.narrative(v.sort.display, " at ", v.organization.display, ".")
	}
	l.raw(`,"identifier":[{"use":"official","system":"`, ownNumbers, `encounter","value":"`).uuid(v.ref.id).raw(`"}]`)
	l.str("status", "finished").key("class").coding(v.class).concepts("type", v.sort)
	l.ref("subject", c.self)
	performer := concept{terminology + "v3-ParticipationType", "PPRF", "Main performer"}
	l.raw(`,"participant":[{"type":[`).codeable(performer).raw(`]`)
	l.period("period", v.start, v.end).ref("individual", v.doctor).raw(`}]`)
	l.period("period", v.start, v.end)
	if v.sick {
		l.concepts("reasonCode", v.cause.code)
		l.raw(`,"diagnosis":[{"condition":`).reference(v.cause.ref)
		l.concept("use", concept{terminology + "diagnosis-role", "AD", "Diagnosis on admission"}).raw(`}]`)
	} else if len(c.chronic) > 0 && c.rng.chance(50) {
		l.refs("reasonReference", pick(&c.rng, c.chronic).ref)
	}
	if v.hospital {
		l.raw(`,"hospitalization":{"dischargeDisposition":`)
		l.codeable(concept{terminology + "discharge-disposition", "home", "Home"}).raw(`}`)
	}
	if !v.virtual {
		l.raw(`,"location":[{"location":`).reference(v.place).str("status", "completed")
		l.period("period", v.start, v.end).raw(`}]`)
	}
	l.ref("serviceProvider", v.organization)
	l.close()
}

// writeAppointment writes the appointments of some visits. Some are for two patients; the second one has a smaller
// index, so it exists in every population with this patient.
func (c *chart) writeAppointment() {
	v := &c.visit
	if v.hospital || !c.chance(30) {
		return
	}
	l := c.open(appointmentKind, c.newID(), v.end, "")
	l.str("status", "fulfilled").concepts("serviceType", v.sort)
	l.str("description", "Booked in the practice, all of it made up")
	l.when("start", v.start).when("end", v.start+30*minute)
	l.when("created", max(c.born, v.start-instant(c.rng.between(1, 30))*day))
	together := c.rng.chance(4) && c.index > 0
	l.raw(`,"participant":[`)
	if together {
		other := c.index - 1 - c.rng.below(min(c.index, 40))
		c.writeParticipant(l, reference{kind: patientKind, id: c.pool.patient(other)})
		l.raw(`,`)
	}
	c.writeParticipant(l, c.self)
	l.raw(`,`)
	c.writeParticipant(l, v.doctor)
	if !v.virtual {
		l.raw(`,`)
		c.writeParticipant(l, v.place)
	}
	l.raw(`]`)
	l.close()
}

func (c *chart) writeParticipant(l *line, actor reference) {
	l.raw(`{"actor":`).reference(actor).str("required", "required").str("status", "accepted").raw(`}`)
}
