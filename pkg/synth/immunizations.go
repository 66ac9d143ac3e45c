package synth

// vaccine is given between two ages in months.
type vaccine struct {
	code     concept
	from, to int
}

var vaccineTable = [...]vaccine{
	{concept{cvx, "08", "Hepatitis B vaccine, young people"}, 0, 24},
	{concept{cvx, "119", "Rotavirus vaccine, one strain"}, 1, 9},
	{concept{cvx, "20", "Diphtheria, tetanus and pertussis vaccine"}, 1, 84},
	{concept{cvx, "49", "Haemophilus influenzae type b vaccine"}, 1, 24},
	{concept{cvx, "133", "Pneumococcal conjugate vaccine, 13 strains"}, 1, 24},
	{concept{cvx, "10", "Polio vaccine"}, 1, 84},
	{concept{cvx, "03", "Measles, mumps and rubella vaccine"}, 11, 84},
	{concept{cvx, "21", "Chickenpox vaccine"}, 11, 84},
	{concept{cvx, "83", "Hepatitis A vaccine, young people"}, 11, 84},
	{concept{cvx, "62", "Papillomavirus vaccine, four strains"}, 108, 320},
	{concept{cvx, "114", "Meningococcal conjugate vaccine"}, 130, 230},
	{concept{cvx, "115", "Tetanus, diphtheria and pertussis booster"}, 130, 1200},
	{concept{cvx, "113", "Tetanus and diphtheria booster"}, 216, 1200},
	{concept{cvx, "43", "Hepatitis B vaccine, adults"}, 240, 800},
	{concept{cvx, "121", "Shingles vaccine"}, 600, 1200},
	{concept{cvx, "33", "Pneumococcal polysaccharide vaccine, 23 strains"}, 780, 1200},
}

var influenzaVaccine = concept{cvx, "140", "Influenza vaccine of the season"}

// writeImmunizations writes a vaccination for the age at some visits, and one against influenza in autumn.
func (c *chart) writeImmunizations() {
	v := &c.visit
	if v.virtual || v.sick {
		return
	}
	months := int((v.start - c.born) / (year / 12))
	if _, month, _ := v.start.date(); month >= 9 && months >= 6 && c.rng.chance(60) {
		c.writeImmunization(influenzaVaccine)
	}
	percent := 18
	if months < 24 {
		percent = 85
	}
	if !c.chance(percent) {
		return
	}
	first := c.rng.below(len(vaccineTable))
	for i := range vaccineTable {
		candidate := &vaccineTable[(first+i)%len(vaccineTable)]
		if months >= candidate.from && months < candidate.to {
			c.writeImmunization(candidate.code)
			return
		}
	}
}

func (c *chart) writeImmunization(code concept) {
	r := &c.rng
	v := &c.visit
	l := c.open(immunizationKind, c.newID(), v.end, "us-core-immunization")
	if r.chance(3) {
		l.str("status", "not-done")
		l.concept("statusReason", concept{actCodes, "PATOBJ", "The patient objects"})
	} else {
		l.str("status", "completed")
	}
	l.concept("vaccineCode", code).ref("patient", c.self).ref("encounter", v.ref)
	l.when("occurrenceDateTime", min(v.start+5*minute, v.end)).bool("primarySource", true)
	l.ref("location", v.place)
	if r.chance(60) {
		l.ref("manufacturer", c.pool.organizations[firstMaker+r.below(makerCount)])
	}
	l.raw(`,"lotNumber":"LOT`).digits(r.next(), 6).raw(`"`)
	l.concept("site", concept{terminology + "v3-ActSite", "LA", "Left arm"})
	l.key("doseQuantity").quantity(5, 1, unit{"mL", "mL"})
	l.raw(`,"performer":[{"function":`).codeable(concept{terminology + "v2-0443", "AP", "Who gave it"})
	l.ref("actor", v.doctor).raw(`}]`)
	l.close()
}
