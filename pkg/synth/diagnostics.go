package synth

// analyte is one measured part of a laboratory panel. Low and high are the reference range, in units of 10^-places.
type analyte struct {
	code      concept
	unit      unit
	low, high int
	places    int
	raised    func(*disease) bool // whether a disease raises it; nil for none
}

// panel is a set of analytes that are ordered and reported together.
type panel struct {
	code     concept
	specimen concept
	analytes []analyte
	weight   int // share of the orders, of 100
}

func sugar(d *disease) bool  { return d.raisesSugar }
func lipids(d *disease) bool { return d.raisesLipids }

var (
	mgdL       = unit{"mg/dL", "mg/dL"}
	mmolL      = unit{"mmol/L", "mmol/L"}
	gdL        = unit{"g/dL", "g/dL"}
	unitL      = unit{"U/L", "U/L"}
	percentage = unit{"%", "%"}

	blood = concept{snomed, "122555007", "Blood from a vein"}
	urine = concept{snomed, "122575003", "Urine"}
)

var metabolicBasic = []analyte{
	{concept{loinc, "2345-7", "Glucose in serum or plasma"}, mgdL, 70, 99, 0, sugar},
	{concept{loinc, "3094-0", "Urea nitrogen in serum or plasma"}, mgdL, 7, 20, 0, nil},
	{concept{loinc, "2160-0", "Creatinine in serum or plasma"}, mgdL, 60, 130, 2, nil},
	{concept{loinc, "17861-6", "Calcium in serum or plasma"}, mgdL, 85, 103, 1, nil},
	{concept{loinc, "2951-2", "Sodium in serum or plasma"}, mmolL, 135, 145, 0, nil},
	{concept{loinc, "2823-3", "Potassium in serum or plasma"}, mmolL, 35, 51, 1, nil},
	{concept{loinc, "2075-0", "Chloride in serum or plasma"}, mmolL, 98, 107, 0, nil},
	{concept{loinc, "2028-9", "Carbon dioxide in serum or plasma"}, mmolL, 22, 29, 0, nil},
	{concept{loinc, "33914-3", "Estimated filtration rate of the kidneys"}, unit{"mL/min/1.73m2", "mL/min/{1.73_m2}"},
		60, 120, 0, nil},
}

var metabolicRest = []analyte{
	{concept{loinc, "2885-2", "Protein in serum or plasma"}, gdL, 60, 83, 1, nil},
	{concept{loinc, "1751-7", "Albumin in serum or plasma"}, gdL, 35, 50, 1, nil},
	{concept{loinc, "1975-2", "Total bilirubin in serum or plasma"}, mgdL, 2, 12, 1, nil},
	{concept{loinc, "1742-6", "Alanine aminotransferase in serum or plasma"}, unitL, 7, 45, 0, nil},
	{concept{loinc, "1920-8", "Aspartate aminotransferase in serum or plasma"}, unitL, 8, 40, 0, nil},
	{concept{loinc, "6768-6", "Alkaline phosphatase in serum or plasma"}, unitL, 40, 129, 0, nil},
}

var panelTable = []panel{
	{concept{loinc, "51990-0", "Basic metabolic panel"}, blood, metabolicBasic, 26},
	{concept{loinc, "24323-8", "Comprehensive metabolic panel"}, blood,
		append(metabolicBasic[:len(metabolicBasic):len(metabolicBasic)], metabolicRest...), 14},
	{concept{loinc, "58410-2", "Blood count"}, blood, []analyte{
		{concept{loinc, "6690-2", "White cells in blood"}, unit{"10*3/uL", "10*3/uL"}, 45, 110, 1, nil},
		{concept{loinc, "789-8", "Red cells in blood"}, unit{"10*6/uL", "10*6/uL"}, 410, 590, 2, nil},
		{concept{loinc, "718-7", "Haemoglobin in blood"}, gdL, 120, 172, 1, nil},
		{concept{loinc, "4544-3", "Haematocrit of blood"}, percentage, 360, 502, 1, nil},
		{concept{loinc, "787-2", "Mean volume of red cells"}, unit{"fL", "fL"}, 800, 1000, 1, nil},
		{concept{loinc, "785-6", "Mean haemoglobin of red cells"}, unit{"pg", "pg"}, 270, 330, 1, nil},
		{concept{loinc, "786-4", "Mean haemoglobin concentration of red cells"}, gdL, 320, 360, 1, nil},
		{concept{loinc, "788-0", "Spread of red cell volume"}, percentage, 115, 145, 1, nil},
		{concept{loinc, "777-3", "Platelets in blood"}, unit{"10*3/uL", "10*3/uL"}, 150, 400, 0, nil},
	}, 24},
	{concept{loinc, "57698-3", "Lipid panel"}, blood, []analyte{
		{concept{loinc, "2093-3", "Total cholesterol in serum or plasma"}, mgdL, 120, 200, 0, lipids},
		{concept{loinc, "2571-8", "Triglycerides in serum or plasma"}, mgdL, 50, 150, 0, lipids},
		{concept{loinc, "2085-9", "HDL cholesterol in serum or plasma"}, mgdL, 40, 80, 0, nil},
		{concept{loinc, "13457-7", "LDL cholesterol, calculated"}, mgdL, 50, 130, 0, lipids},
	}, 18},
	{concept{loinc, "4548-4", "Haemoglobin A1c share"}, blood, []analyte{
		{concept{loinc, "4548-4", "Haemoglobin A1c share"}, percentage, 42, 56, 1, sugar},
	}, 8},
	{concept{loinc, "3016-3", "Thyrotropin in serum or plasma"}, blood, []analyte{
		{concept{loinc, "3016-3", "Thyrotropin in serum or plasma"}, unit{"mIU/L", "m[IU]/L"}, 40, 400, 2, nil},
	}, 4},
	{concept{loinc, "24357-6", "Urine dipstick panel"}, urine, []analyte{
		{concept{loinc, "5811-5", "Specific gravity of urine by strip"}, unit{"1", "1"}, 1005, 1030, 3, nil},
		{concept{loinc, "5803-2", "pH of urine by strip"}, unit{"pH", "[pH]"}, 50, 80, 1, nil},
	}, 6},
}

var orderCategory = concept{snomed, "108252007", "Laboratory procedure"}

// writeLaboratory orders a panel at some visits and writes the specimen, the results and the report; at a few others,
// an imaging report.
func (c *chart) writeLaboratory() {
	r := &c.rng
	if c.chance(9) {
		c.writeImaging()
	}
	if !c.chance(33) {
		return
	}
	p := pickWeighted(r, panelTable, func(p *panel) int { return p.weight })
	v := &c.visit
	order := c.writeOrder(orderCategory, p.code)

	taken := min(v.start+5*minute, v.end)
	specimen := reference{specimenKind, c.newID(), p.specimen.display}
	l := c.open(specimenKind, specimen.id, v.end, "us-core-specimen")
	l.raw(`,"identifier":[`).identifier(ownNumbers+"specimen", "SP", r.next()).raw(`]`)
	l.raw(`,"accessionIdentifier":`).identifier(ownNumbers+"accession", "A", r.next())
	l.str("status", "available").concept("type", p.specimen).ref("subject", c.self)
	l.when("receivedTime", v.end).refs("request", order)
	l.raw(`,"collection":{"collector":`).reference(v.doctor).when("collectedDateTime", taken).raw(`}`)
	l.close()

	before := len(v.observations)
	for i := range p.analytes {
		c.writeResult(&p.analytes[i], order, specimen)
	}
	if p.specimen == urine {
		l = c.observe("us-core-observation-lab", laboratory, concept{loinc, "5804-0", "Protein in urine by strip"})
		l.refs("basedOn", order).refs("performer", v.organization)
		l.concept("valueCodeableConcept", concept{snomed, "260385009", "Negative"}).ref("specimen", specimen)
		l.close()
	}

	l = c.open(reportKind, c.newID(), v.end+20*minute, "us-core-diagnosticreport-lab")
	l.refs("basedOn", order).str("status", "final")
	l.concepts("category", concept{terminology + "v2-0074", "LAB", "Laboratory"})
	l.concept("code", p.code).ref("subject", c.self).ref("encounter", v.ref)
	l.when("effectiveDateTime", taken).when("issued", v.end+10*minute)
	l.refs("performer", v.organization).refs("resultsInterpreter", v.doctor)
	l.refs("specimen", specimen).refs("result", v.observations[before:]...)
	l.close()
}

func (c *chart) writeResult(a *analyte, order, specimen reference) {
	r := &c.rng
	v := &c.visit
	width := a.high - a.low
	value := r.between(a.low, a.high)
	switch {
	case a.raised != nil && c.has(a.raised):
		value = a.high + r.between(-width/4, width)
	case r.chance(9):
		value = r.between(a.low-width/4, a.high+width/3)
	}
	value = max(value, 1)
	verdict := concept{terminology + "v3-ObservationInterpretation", "N", "Normal"}
	if value > a.high {
		verdict = concept{terminology + "v3-ObservationInterpretation", "H", "High"}
	} else if value < a.low {
		verdict = concept{terminology + "v3-ObservationInterpretation", "L", "Low"}
	}
	l := c.observe("us-core-observation-lab", laboratory, a.code)
	l.refs("basedOn", order).refs("performer", v.organization)
	l.key("valueQuantity").quantity(value, a.places, a.unit)
	l.concepts("interpretation", verdict).ref("specimen", specimen)
	l.raw(`,"referenceRange":[{"low":`).quantity(a.low, a.places, a.unit)
	l.key("high").quantity(a.high, a.places, a.unit).raw(`}]`)
	l.close()
}

// writeOrder writes a ServiceRequest of the visit.
func (c *chart) writeOrder(category, code concept) reference {
	v := &c.visit
	self := reference{orderKind, c.newID(), ""}
	l := c.open(orderKind, self.id, v.start+minute, "us-core-servicerequest")
	l.str("status", "completed").str("intent", "order").concepts("category", category)
	l.concept("code", code).ref("subject", c.self).ref("encounter", v.ref)
	l.when("occurrenceDateTime", min(v.start+5*minute, v.end)).when("authoredOn", v.start)
	switch {
	case c.rng.chance(2):
		// A practitioner outside the population: an export cannot follow this reference.
		l.raw(`,"requester":{"reference":"https://referrals.example.org/fhir/Practitioner/`).
			uuid(c.newID()).raw(`"}`)
	case c.rng.chance(30):
		l.ref("requester", c.pool.roles[v.number])
	default:
		l.ref("requester", v.doctor)
	}
	if v.sick {
		l.concepts("reasonCode", v.cause.code)
	} else if len(c.chronic) > 0 {
		l.refs("reasonReference", c.chronic[0].ref)
	}
	l.close()
	return self
}

var imagingTable = [...]struct{ code, category concept }{
	{concept{loinc, "36643-5", "X-ray of the chest, two views"}, concept{loinc, "LP29684-5", "Radiology"}},
	{concept{loinc, "24627-2", "Computed tomography of the chest"}, concept{loinc, "LP29684-5", "Radiology"}},
	{concept{loinc, "11524-6", "Electrocardiogram study"}, concept{loinc, "LP29708-2", "Cardiology"}},
	{concept{loinc, "42148-7", "Ultrasound of the heart"}, concept{loinc, "LP29708-2", "Cardiology"}},
	{concept{loinc, "11526-1", "Study of tissue"}, concept{loinc, "LP7839-6", "Pathology"}},
}

func (c *chart) writeImaging() {
	v := &c.visit
	study := pick(&c.rng, imagingTable[:])
	order := c.writeOrder(concept{snomed, "363679005", "Imaging"}, study.code)
	l := c.open(reportKind, c.newID(), v.end+2*hour, "us-core-diagnosticreport-note")
	l.narrative(study.code.display, ": nothing remarkable in this made-up study.")
	l.refs("basedOn", order).str("status", "final").concepts("category", study.category)
	l.concept("code", study.code).ref("subject", c.self).ref("encounter", v.ref)
	l.when("effectiveDateTime", v.start).when("issued", v.end+hour)
	l.refs("performer", v.doctor, v.organization)
	l.str("conclusion", "Nothing remarkable")
	l.raw(`,"presentedForm":[{"contentType":"text/plain","data":"`)
	c.writeNote(l, 4)
	l.raw(`"`).when("creation", v.end+hour).raw(`}]`)
	l.close()
}
