package synth

type intervention struct {
	code     concept
	fromAge  int
	hospital bool    // only done in hospital
	implant  concept // the device left in the body, if the code is not empty
	onlyFor  string  // "female" for those only done to women
}

var procedureTable = []intervention{
	{code: concept{snomed, "430193006", "Going through all medications"}},
	{code: concept{snomed, "171207006", "Screening for depression"}, fromAge: 12},
	{code: concept{snomed, "127783003", "Spirometry"}, fromAge: 6},
	{code: concept{snomed, "117015009", "Culture of a throat swab"}},
	{code: concept{snomed, "76601001", "Injection into a muscle"}},
	{code: concept{snomed, "228557008", "Cognitive and behavioural therapy"}, fromAge: 12},
	{code: concept{snomed, "73761001", "Colonoscopy"}, fromAge: 45},
	{code: concept{snomed, "71651007", "Mammography"}, fromAge: 40, onlyFor: "female"},
	{code: concept{snomed, "288086009", "Stitching of a wound"}},
	{code: concept{snomed, "29303009", "Electrocardiogram"}, fromAge: 18},
	{code: concept{snomed, "80146002", "Removal of the appendix"}, fromAge: 6, hospital: true},
	{code: concept{snomed, "265764009", "Dialysis of the kidneys"}, fromAge: 40, hospital: true},
}

var implantTable = []intervention{
	{code: concept{snomed, "307280005", "Implantation of a pacemaker"}, hospital: true,
		implant: concept{snomed, "706004007", "Pacemaker"}},
	{code: concept{snomed, "52734007", "Total replacement of the hip"}, hospital: true,
		implant: concept{snomed, "304120007", "Total hip replacement prosthesis"}},
	{code: concept{snomed, "36969009", "Stent in a coronary artery"}, hospital: true,
		implant: concept{snomed, "705643001", "Coronary artery stent"}},
}

// writeProcedures writes the procedures of the visit. Some hospital stays also implant a Device.
func (c *chart) writeProcedures() {
	v := &c.visit
	r := &c.rng
	age := c.age(v.start)
	if v.hospital && age >= 45 && c.implants < 3 && c.chance(22) {
		c.writeProcedure(pick(r, implantTable))
		return
	}
	if v.virtual || !c.chance(45) {
		return
	}
	p := pick(r, procedureTable)
	if age >= p.fromAge && (!p.hospital || v.hospital) && (p.onlyFor != "female" || c.female) {
		c.writeProcedure(p)
	}
}

func (c *chart) writeProcedure(p *intervention) {
	r := &c.rng
	v := &c.visit
	var implant reference
	if p.implant.code != "" {
		implant = c.writeDevice(p.implant)
	}
	id := c.newID()
	l := c.open(procedureKind, id, v.end, "us-core-procedure")
	if r.chance(40) {
		l.narrative(p.code.display, ", done without trouble.")
	}
	l.str("status", "completed").concept("code", p.code).ref("subject", c.self).ref("encounter", v.ref)
	l.period("performedPeriod", v.start, v.end)
	l.raw(`,"performer":[{"actor":`).reference(v.doctor).ref("onBehalfOf", v.organization).raw(`}]`)
	l.ref("location", v.place)
	if v.sick {
		l.refs("reasonReference", v.cause.ref)
	} else if len(c.chronic) > 0 {
		l.refs("reasonReference", pick(r, c.chronic).ref)
	}
	if p.implant.code != "" {
		l.raw(`,"focalDevice":[{"action":`)
		l.codeable(concept{snomed, "129338007", "Implantation"}).ref("manipulated", implant).raw(`}]`)
	}
	l.close()
}

func (c *chart) writeDevice(code concept) reference {
	r := &c.rng
	v := &c.visit
	self := reference{deviceKind, c.newID(), code.display}
	c.implants++
	made := v.start - instant(r.between(30, 400))*day
	lot, serial, number := r.next(), r.next(), r.next()
	l := c.open(deviceKind, self.id, v.end, "us-core-implantable-device")
	l.raw(`,"udiCarrier":[{"deviceIdentifier":"`).digits(number, 14)
	l.raw(`","carrierHRF":"(01)`).digits(number, 14).raw(`(10)`).digits(lot, 10)
	l.raw(`(21)`).digits(serial, 12).raw(`"}]`)
	l.str("status", "active").raw(`,"distinctIdentifier":"`).digits(number, 14).raw(`"`)
	l.str("manufacturer", "Fictional Devices").when("manufactureDate", made).when("expirationDate", made+25*year)
	l.raw(`,"lotNumber":"`).digits(lot, 10).raw(`","serialNumber":"`).digits(serial, 12).raw(`"`)
	l.raw(`,"deviceName":[{"name":"`, code.display, `","type":"user-friendly-name"}]`)
	l.concept("type", code).ref("patient", c.self)
	l.close()
	return self
}
