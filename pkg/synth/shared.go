package synth

// The sizes of the pool are constant, so that the pool, and with it every patient, is the same in a population of any
// size.
const (
	organizationCount = 40
	systemCount       = 4                         // organizations 0-3: health systems, on top
	firstHospital     = systemCount               // 4-15: hospitals, part of a system
	firstClinic       = firstHospital + 2*regions // 16-27: clinics, part of a hospital
	firstPayer        = firstClinic + 2*regions   // 28-35
	firstMaker        = firstPayer + payerCount   // 36-39: makers of medications
	makerCount        = organizationCount - firstMaker
	payerCount        = 8
	regions           = 6 // a patient meets the people and places of one region only
	locationCount     = 60
	idleLocations     = regions // the last ones, one in each region: no patient has visited them
	practitionerCount = 200
	idlePractitioners = 8 // the last ones: no record references them
	medicationCount   = 60
)

// poolMade is the date of the shared resources.
const poolMade = today - 12*year

// pool has the resources that patients share. It is generated from the seed and never modified afterwards.
type pool struct {
	seed          uint64
	organizations [organizationCount]reference
	locations     [locationCount]reference
	practitioners [practitionerCount]reference
	roles         [practitionerCount]reference // the role of the practitioner with the same number
	medications   [medicationCount]reference   // of the drug with the same number modulo len(drugTable)
}

// Spaces of ids, beside those of the kinds.
const (
	drawSpace  uint64 = 100 + iota // seeds of patients' random numbers
	payerSpace                     // who pays for a patient
)

var townNames = [regions]string{"Sampleton", "Mockbury", "Exampleham", "Fixture Falls", "Stubfield", "Dummy Springs"}

func newPool(seed uint64) *pool {
	p := &pool{seed: seed}
	names := rng{state: mix(seed) + 1}
	for i := range p.organizations {
		p.organizations[i] = p.shared(organizationKind, i, organizationName(i))
	}
	for i := range p.locations {
		town := townNames[i%regions]
		name := town + " Room " + string(appendInt(nil, i))
		if i < 2*regions {
			name = town + " Building " + string(appendInt(nil, i/regions+1))
		}
		p.locations[i] = p.shared(locationKind, i, name)
	}
	for i := range p.practitioners {
		name := newName(&names)
		p.practitioners[i] = p.shared(practitionerKind, i, "Dr. "+name.given+" "+name.family)
		p.roles[i] = p.shared(roleKind, i, "")
	}
	for i := range p.medications {
		p.medications[i] = p.shared(medicationKind, i, drugTable[i%len(drugTable)].code.display)
	}
	return p
}

func (p *pool) shared(k kind, index int, display string) reference {
	owner := newIDs(p.seed, uint64(k), uint64(index))
	return reference{k, owner.next(), display}
}

func organizationName(i int) string {
	number := string(appendInt(nil, i+1))
	switch {
	case i < firstHospital:
		return "Imaginary Health System " + number
	case i < firstClinic:
		return townNames[(i-firstHospital)%regions] + " Practice Hospital " + number
	case i < firstPayer:
		return townNames[(i-firstClinic)%regions] + " Example Clinic " + number
	case i < firstMaker:
		return "Invented Mutual Insurance " + number
	}
	return "Fictional Pharmaceuticals " + number
}

// parent returns the organization that organization i is part of, and whether there is one.
func parent(i int) (int, bool) {
	switch {
	case i < firstHospital || i >= firstPayer:
		return 0, false
	case i < firstClinic:
		return (i - firstHospital) % systemCount, true
	}
	return i - 2*regions, true
}

// hospital returns one of the two hospitals of a region, clinic one of its two clinics.
func (p *pool) hospital(region, which int) reference {
	return p.organizations[firstHospital+region+regions*which]
}

func (p *pool) clinic(region, which int) reference {
	return p.organizations[firstClinic+region+regions*which]
}

// location returns a place of a region; which is below locationCount/regions.
func (p *pool) location(region, which int) reference { return p.locations[region+regions*which] }

// practitionerIn returns the number of a random practitioner of a region.
func practitionerIn(r *rng, region int) int {
	return region + regions*r.below((practitionerCount-idlePractitioners)/regions)
}

// patient returns the id of the patient with the number index.
func (p *pool) patient(index int) uuid {
	owner := newIDs(p.seed, uint64(patientKind), uint64(index))
	return owner.at(0)
}

// payerDraw returns a random number that distributes the patients evenly over any number of payers.
func (p *pool) payerDraw(index int) uint64 {
	owner := newIDs(p.seed, payerSpace, uint64(index))
	return owner.key.high >> 8
}

// write writes the pool's resources, and Provenance resources that target only an Organization.
func (p *pool) write(out *block) {
	r := rng{state: mix(p.seed) + 2}
	p.writeOrganizations(out, &r)
	p.writeLocations(out, &r)
	p.writePractitioners(out, &r)
	p.writeMedications(out, &r)
}

func (p *pool) writeOrganizations(out *block, r *rng) {
	types := terminology + "organization-type"
	provenances := newIDs(p.seed, uint64(provenanceKind), 0)
	for i, self := range p.organizations {
		role := concept{types, "prov", "Provider of care"}
		switch {
		case i >= firstMaker:
			role = concept{types, "bus", "Business outside health care"}
		case i >= firstPayer:
			role = concept{types, "pay", "Payer"}
		case i >= firstClinic:
			role = concept{types, "dept", "Clinic of a hospital"}
		}
		made := poolMade + instant(i)*day
		l := out.open(organizationKind, self.id, made, "us-core-organization")
		l.narrative(self.display)
		l.raw(`,"identifier":[`).identifier(npi, "", 9990000000+uint64(i)).raw(`]`)
		l.bool("active", true).concepts("type", role).str("name", self.display)
		l.raw(`,"telecom":[`).phone(r.next(), "work")
		l.raw(`,{"system":"email","value":"office`).int(i).raw(`@example.com","use":"work"}]`)
		l.raw(`,"address":[`).address(r.between(1, 999), townNames[i%regions], r.next()).raw(`]`)
		if above, ok := parent(i); ok {
			l.ref("partOf", p.organizations[above])
		}
		l.close()

		if i%4 == 0 {
			l = out.open(provenanceKind, provenances.next(), made+hour, "us-core-provenance")
			l.refs("target", self).when("recorded", made+hour)
			l.raw(`,"agent":[{`).raw(`"type":`).codeable(provenanceAuthor)
			l.ref("who", p.organizations[0]).raw(`}]`)
			l.close()
		}
	}
}

func (p *pool) writeLocations(out *block, r *rng) {
	for i, self := range p.locations {
		region := i % regions
		l := out.open(locationKind, self.id, poolMade+instant(i)*day, "us-core-location")
		l.raw(`,"identifier":[`).identifier(ownNumbers+"location", "L", uint64(i)).raw(`]`)
		l.str("status", "active").str("name", self.display).str("mode", "instance")
		if i < 2*regions {
			l.concepts("type", concept{roleCodes, "HOSP", "Hospital"})
		} else {
			l.concepts("type", concept{roleCodes, "OF", "Outpatient rooms"})
		}
		l.raw(`,"telecom":[`).phone(r.next(), "work").raw(`]`)
		l.key("address").address(r.between(1, 999), townNames[region], r.next())
		physical := terminology + "location-physical-type"
		if i < 2*regions {
			l.concept("physicalType", concept{physical, "bu", "Building"})
			l.ref("managingOrganization", p.hospital(region, i/regions))
		} else {
			l.concept("physicalType", concept{physical, "ro", "Room"})
			l.ref("managingOrganization", p.clinic(region, i/regions%2))
			l.ref("partOf", p.location(region, i/regions%2))
		}
		l.raw(`,"position":{"longitude":-71.`).digits(r.next(), 4).raw(`,"latitude":42.`).digits(r.next(), 4).raw(`}`)
		l.close()
	}
}

func (p *pool) writePractitioners(out *block, r *rng) {
	specialties := [...]concept{
		{nucc, "207Q00000X", "Family medicine physician"},
		{nucc, "207R00000X", "Internal medicine physician"},
		{nucc, "208000000X", "Paediatrics physician"},
		{nucc, "207P00000X", "Emergency medicine physician"},
		{nucc, "363L00000X", "Nurse practitioner"},
	}
	names := rng{state: mix(p.seed) + 1} // the stream that newPool drew the displays from
	for i, self := range p.practitioners {
		region := i % regions
		name := newName(&names)
		made := poolMade + instant(i)*hour
		l := out.open(practitionerKind, self.id, made, "us-core-practitioner")
		l.raw(`,"identifier":[`).identifier(npi, "", 9980000000+uint64(i)).raw(`]`).bool("active", true)
		l.raw(`,"name":[{"use":"official","family":"`, name.family, `","given":["`, name.given, `"],"prefix":["Dr."]}]`)
		l.raw(`,"telecom":[{"system":"email","value":"practitioner`).int(i).raw(`@example.com","use":"work"}]`)
		l.raw(`,"address":[`).address(r.between(1, 999), townNames[region], r.next()).raw(`]`)
		l.str("gender", *pick(r, []string{"female", "male"}))
		l.raw(`,"qualification":[{"code":`).codeable(concept{terminology + "v2-0360", "MD", "Doctor of medicine"}).raw(`}]`)
		l.close()

		l = out.open(roleKind, p.roles[i].id, made+hour, "us-core-practitionerrole")
		l.bool("active", true).ref("practitioner", self)
		if i%2 == 0 {
			l.ref("organization", p.hospital(region, i/regions%2))
		} else {
			l.ref("organization", p.clinic(region, i/regions%2))
		}
		l.concepts("code", concept{nucc, "208D00000X", "General practice physician"})
		l.concepts("specialty", specialties[i%len(specialties)])
		l.refs("location", p.location(region, i/regions%(locationCount/regions)))
		l.raw(`,"telecom":[`).phone(r.next(), "work").raw(`]`)
		l.close()
	}
}

func (p *pool) writeMedications(out *block, r *rng) {
	for i, self := range p.medications {
		d := &drugTable[i%len(drugTable)]
		l := out.open(medicationKind, self.id, poolMade+instant(i)*day, "us-core-medication")
		l.concept("code", d.code).str("status", "active")
		l.ref("manufacturer", p.organizations[firstMaker+i%makerCount])
		l.concept("form", d.form)
		l.raw(`,"ingredient":[{"itemCodeableConcept":`).codeable(d.ingredient).raw(`,"isActive":true}]`)
		l.raw(`,"batch":{"lotNumber":"LOT`).digits(r.next(), 6).raw(`"`)
		l.day("expirationDate", today+instant(r.between(100, 900))*day).raw(`}`)
		l.close()
	}
}
