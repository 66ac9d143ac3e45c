package synth

// prescriptionShape is the form in which a MedicationRequest names the medication.
type prescriptionShape int

const (
	asCode prescriptionShape = iota
	asReference
	asContained
)

// writePrescriptions renews the drugs of chronic diseases and prescribes for the illness of the visit.
func (c *chart) writePrescriptions() {
	v := &c.visit
	for i := range c.chronic {
		own := &c.chronic[i]
		if own.onset <= v.start && c.chance(38) {
			c.writePrescription(*pick(&c.rng, own.drugs), own.ref)
		}
	}
	if v.sick && c.chance(65) {
		c.writePrescription(*pick(&c.rng, v.cause.drugs), v.cause.ref)
	}
}

func (c *chart) writePrescription(number int, reason reference) {
	r := &c.rng
	v := &c.visit
	d := &drugTable[number]
	self := reference{prescriptionKind, c.newID(), ""}
	shape := asCode
	if draw := r.below(100); draw < 40 || c.showcase {
		shape = asReference
	} else if draw < 45 {
		shape = asContained
	}
	medication := c.pool.medications[number+len(drugTable)*r.below(medicationCount/len(drugTable))]
	status := "completed"
	if v.start+instant(d.days)*day > c.end {
		status = "active"
	}
	l := c.open(prescriptionKind, self.id, v.end, "us-core-medicationrequest")
	if shape == asContained {
		l.raw(`,"contained":[{"resourceType":"Medication","id":"compound"`).concept("code", d.code).
			concept("form", d.form).raw(`}]`)
	}
	l.str("status", status).str("intent", "order")
	l.concepts("category", concept{terminology + "medicationrequest-category", "community", "Taken at home"})
	l.bool("reportedBoolean", false)
	writeMedication(l, shape, d, medication)
	l.ref("subject", c.self).ref("encounter", v.ref).when("authoredOn", v.start)
	if r.chance(15) {
		l.ref("requester", c.pool.roles[v.number])
	} else {
		l.ref("requester", v.doctor)
	}
	l.refs("reasonReference", reason)
	c.writeDosage(l, d)
	l.raw(`,"dispenseRequest":{"validityPeriod":{"start":"`)
	l.buf = appendInstant(l.buf, v.start)
	l.raw(`","end":"`)
	l.buf = appendInstant(l.buf, v.start+year)
	l.raw(`"},"numberOfRepeatsAllowed":`).int(r.below(4))
	l.key("quantity").quantity(d.perDay*d.days, 0, unit{"doses", "{dose}"})
	l.key("expectedSupplyDuration").quantity(d.days, 0, unit{"days", "d"}).raw(`}`)
	l.close()

	if shape != asContained && c.chance(50) {
		c.writeDispense(d, shape, medication, self)
	}
}

func writeMedication(l *line, shape prescriptionShape, d *drug, medication reference) {
	switch shape {
	case asReference:
		l.ref("medicationReference", medication)
	case asContained:
		l.raw(`,"medicationReference":{"reference":"#compound"}`)
	case asCode:
		l.concept("medicationCodeableConcept", d.code)
	}
}

func (c *chart) writeDosage(l *line, d *drug) {
	l.raw(`,"dosageInstruction":[{"sequence":1,"text":"`, d.dose, `","timing":{"repeat":{"frequency":`).int(d.perDay)
	l.raw(`,"period":1,"periodUnit":"d"}},"route":`).codeable(concept{snomed, "26643006", "By mouth"})
	l.raw(`,"doseAndRate":[{"type":`).codeable(concept{terminology + "dose-rate-type", "ordered", "Ordered"})
	l.key("doseQuantity").quantity(1, 0, unit{"dose", "{dose}"}).raw(`}]}]`)
}

func (c *chart) writeDispense(d *drug, shape prescriptionShape, medication, request reference) {
	v := &c.visit
	prepared := min(v.end+instant(c.rng.between(1, 48))*hour, c.end)
	handed := min(prepared+instant(c.rng.between(5, 600))*minute, c.end)
	l := c.open(dispenseKind, c.newID(), handed+minute, "us-core-medicationdispense")
	l.str("status", "completed")
	writeMedication(l, shape, d, medication)
	l.ref("subject", c.self).ref("context", v.ref)
	l.raw(`,"performer":[{"actor":`).reference(c.home).raw(`}]`)
	l.refs("authorizingPrescription", request)
	l.concept("type", concept{actCodes, "FF", "First fill"})
	l.key("quantity").quantity(d.perDay*d.days, 0, unit{"doses", "{dose}"})
	l.key("daysSupply").quantity(d.days, 0, unit{"days", "d"})
	l.when("whenPrepared", prepared).when("whenHandedOver", handed)
	if c.rng.chance(5) {
		l.refs("receiver", c.self)
	}
	c.writeDosage(l, d)
	l.close()
}
