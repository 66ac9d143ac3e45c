package synth

var (
	observationCategory = terminology + "observation-category"
	vitalSigns          = concept{observationCategory, "vital-signs", "Vital signs"}
	socialHistory       = concept{observationCategory, "social-history", "Social history"}
	laboratory          = concept{observationCategory, "laboratory", "Laboratory"}
)

// vital is a vital sign with a number.
type vital struct {
	code    concept
	profile string
	unit    unit
	places  int
}

var (
	bloodPressure = concept{loinc, "85354-9", "Blood pressure with both components"}
	systolic      = concept{loinc, "8480-6", "Systolic blood pressure"}
	diastolic     = concept{loinc, "8462-4", "Diastolic blood pressure"}
	mmHg          = unit{"mmHg", "mm[Hg]"}

	heartRate = vital{concept{loinc, "8867-4", "Heart rate"}, "us-core-heart-rate",
		unit{"beats/minute", "/min"}, 0}
	breathRate = vital{concept{loinc, "9279-1", "Breathing rate"}, "us-core-respiratory-rate",
		unit{"breaths/minute", "/min"}, 0}
	bodyTemperature = vital{concept{loinc, "8310-5", "Body temperature"}, "us-core-body-temperature",
		unit{"Cel", "Cel"}, 1}
	bodyHeight = vital{concept{loinc, "8302-2", "Body height"}, "us-core-body-height", unit{"cm", "cm"}, 1}
	bodyWeight = vital{concept{loinc, "29463-7", "Body weight"}, "us-core-body-weight", unit{"kg", "kg"}, 1}
	massIndex  = vital{concept{loinc, "39156-5", "Body mass index"}, "us-core-bmi", unit{"kg/m2", "kg/m2"}, 1}
	headSize   = vital{concept{loinc, "9843-4", "Head circumference"}, "us-core-head-circumference",
		unit{"cm", "cm"}, 1}
	headPercentile = vital{concept{loinc, "8289-1", "Head circumference percentile"},
		"head-occipital-frontal-circumference-percentile", unit{"%", "%"}, 0}
	massPercentile = vital{concept{loinc, "59576-9", "Body mass index percentile for age and sex"},
		"pediatric-bmi-for-age", unit{"%", "%"}, 0}
	weightForLength = vital{concept{loinc, "77606-2", "Weight-for-length percentile"},
		"pediatric-weight-for-height", unit{"%", "%"}, 0}
	oxygen       = concept{loinc, "2708-6", "Oxygen saturation of arterial blood"}
	pulseOximery = concept{loinc, "59408-5", "Oxygen saturation by pulse oximeter"}
)

// growth has the median height in mm and weight in g of children by age in years; adults have their own values.
var growth = [...]struct{ age, height, weight int }{
	{0, 500, 3400}, {1, 750, 9700}, {2, 870, 12300}, {4, 1020, 16300}, {6, 1150, 20800}, {8, 1280, 25800},
	{10, 1385, 32200}, {12, 1495, 41000}, {14, 1605, 50500}, {16, 1670, 58500}, {18, 1690, 65000},
}

// body returns height in mm and weight in g at an instant.
func (c *chart) body(at instant) (height, weight int) {
	if c.age(at) >= 18 {
		return c.height, c.shape * c.height / 100 * c.height / 100
	}
	days := int((at - c.born) / day)
	for i := 1; i < len(growth); i++ {
		low, high := growth[i-1], growth[i]
		if days < high.age*365 || i == len(growth)-1 {
			part, whole := days-low.age*365, (high.age-low.age)*365
			height = low.height + (high.height-low.height)*part/whole
			weight = low.weight + (high.weight-low.weight)*part/whole
			break
		}
	}
	return height * c.height / 1690, weight * (c.shape + 400) / 665
}

func (c *chart) has(property func(*disease) bool) bool {
	for i := range c.chronic {
		if c.chronic[i].onset <= c.visit.start && property(c.chronic[i].disease) {
			return true
		}
	}
	return false
}

// observe starts an Observation of the visit. Effective and issued are during the visit.
func (c *chart) observe(profile string, category concept, codes ...concept) *line {
	v := &c.visit
	self := reference{observationKind, c.newID(), ""}
	v.observations = append(v.observations, self)
	at := min(v.start+instant(len(v.observations))*minute, v.end)
	l := c.open(observationKind, self.id, v.end, profile)
	l.str("status", "final").concepts("category", category).concept("code", codes...)
	l.ref("subject", c.self).ref("encounter", v.ref)
	return l.when("effectiveDateTime", at).when("issued", v.end)
}

func (c *chart) writeVital(vital *vital, value int) {
	l := c.observe(vital.profile, vitalSigns, vital.code)
	l.refs("performer", c.visit.doctor)
	l.key("valueQuantity").quantity(value, vital.places, vital.unit)
	l.close()
}

// writeVitals writes the vital signs of a visit in person.
func (c *chart) writeVitals() {
	v := &c.visit
	if v.virtual {
		return
	}
	r := &c.rng
	age := c.age(v.start)
	height, weight := c.body(v.start)
	weight += weight * r.between(-30, 30) / 1000
	if c.chance(85) {
		c.writeVital(&bodyWeight, weight/100)
	}
	if age < 18 || c.chance(55) {
		c.writeVital(&bodyHeight, height)
		if age >= 2 {
			c.writeVital(&massIndex, weight*10_000/height/height) // g*10^4/mm^2 is tenths of kg/m^2
		}
	}
	if age < 2 {
		head := 345 + min(int((v.start-c.born)/day), 730)*140/730 + r.between(-12, 12)
		c.writeVital(&headSize, head)
		c.writeVital(&headPercentile, r.between(3, 97))
		c.writeVital(&weightForLength, r.between(3, 97))
	} else if age < 18 && r.chance(60) {
		c.writeVital(&massPercentile, r.between(3, 97))
	}
	if age >= 3 {
		c.writeBloodPressure(age)
	}
	beats, breaths := r.around(74, 16), r.around(16, 4)
	if age < 12 {
		beats, breaths = r.around(132-5*age, 18), r.around(38-2*age, 6)
	}
	c.writeVital(&heartRate, beats)
	if c.chance(75) {
		c.writeVital(&breathRate, breaths)
	}
	if v.sick || c.chance(40) {
		temperature := r.around(368, 5)
		if v.sick && r.chance(30) {
			temperature = r.between(378, 396)
		}
		c.writeVital(&bodyTemperature, temperature)
	}
	if v.hospital || c.chance(40) {
		l := c.observe("us-core-pulse-oximetry", vitalSigns, oxygen, pulseOximery)
		l.refs("performer", v.doctor)
		l.key("valueQuantity").quantity(r.around(970, 25), 1, unit{"%", "%"})
		l.close()
	}
}

func (c *chart) writeBloodPressure(age int) {
	r := &c.rng
	upper := 96 + min(age, 70)/3 + r.around(4, 14)
	if c.has(func(d *disease) bool { return d.raisesBP }) {
		upper += r.between(12, 36)
	}
	lower := upper*62/100 + r.around(2, 7)
	l := c.observe("us-core-blood-pressure", vitalSigns, bloodPressure)
	if r.chance(30) {
		l.narrative("Blood pressure measured on the upper arm, sitting.")
	}
	l.refs("performer", c.visit.doctor)
	l.raw(`,"component":[{"code":`).codeable(systolic).key("valueQuantity").quantity(upper, 0, mmHg)
	l.raw(`},{"code":`).codeable(diastolic).key("valueQuantity").quantity(lower, 0, mmHg).raw(`}]`)
	l.close()
}

var smokingStatus = []concept{
	{snomed, "266919005", "Never smoked"},
	{snomed, "8517006", "Smoked in the past"},
	{snomed, "449868002", "Smokes every day"},
	{snomed, "428041000124106", "Smokes on some days"},
}

// writeSocialHistory writes the social history at some visits of patients who are old enough.
func (c *chart) writeSocialHistory() {
	v := &c.visit
	age := c.age(v.start)
	if age < 13 || v.hospital {
		return
	}
	r := &c.rng
	if c.chance(40) {
		l := c.observe("us-core-smokingstatus", socialHistory, concept{loinc, "72166-2", "Tobacco smoking status"})
		l.concept("valueCodeableConcept", smokingStatus[c.smoker])
		l.close()
	}
	if age >= 18 && c.chance(12) {
		l := c.observe("us-core-simple-observation", socialHistory, concept{loinc, "11331-6", "Drinking of alcohol"})
		l.bool("valueBoolean", c.drinking)
		l.close()
	}
	if age >= 16 && c.chance(8) {
		l := c.observe("us-core-observation-occupation", socialHistory, concept{loinc, "11341-5", "History of occupation"})
		l.str("valueString", *pick(r, []string{"Tester of examples", "Keeper of fixtures", "Counter of samples"}))
		l.close()
	}
	if c.female && age >= 15 && age < 50 && c.chance(12) {
		l := c.observe("us-core-observation-pregnancystatus", socialHistory, concept{loinc, "82810-3", "Pregnancy status"})
		l.concept("valueCodeableConcept", concept{snomed, "60001007", "Not pregnant"})
		l.close()
	}
}
