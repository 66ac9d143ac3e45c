package synth

// writeCareTeam writes the patient's CareTeam. CarePlans, Goals and Conditions reference it.
func (c *chart) writeCareTeam() {
	r := &c.rng
	c.team = reference{careTeamKind, c.newID(), ""}
	nurse := practitionerIn(r, c.region)
	l := c.open(careTeamKind, c.team.id, c.begin+hour, "us-core-careteam")
	l.narrative("Those who look after the patient.")
	l.str("status", "active").str("name", "Care team").ref("subject", c.self)
	l.raw(`,"period":{"start":"`)
	l.buf = appendInstant(l.buf, c.begin)
	l.raw(`"},"participant":[{"role":[`).codeable(concept{snomed, "17561000", "Doctor in charge"}).raw(`]`)
	l.ref("member", c.practitioner(c.doctor)).ref("onBehalfOf", c.home)
	l.raw(`},{"role":[`).codeable(concept{snomed, "224535009", "Registered nurse"}).raw(`]`)
	l.ref("member", c.pool.roles[nurse])
	l.raw(`},{"role":[`).codeable(concept{snomed, "116154003", "Patient"}).raw(`]`).ref("member", c.self)
	if c.hasKin {
		l.raw(`},{"role":[`).codeable(concept{snomed, "133932002", "Helper"}).raw(`]`).ref("member", c.related)
	}
	l.raw(`}]`).refs("managingOrganization", c.home)
	l.close()
}

// writeCarePlan writes a plan with a goal for every chronic disease, or a general one for a patient without any.
func (c *chart) writeCarePlan() {
	if len(c.chronic) == 0 {
		c.writePlan(selfCare, "Half an hour of movement on most days", nil)
	}
	for i := range c.chronic {
		own := &c.chronic[i]
		c.writePlan(own.carePlan, own.goal, own)
	}
}

// writePlan writes a Goal and a CarePlan; of is nil when no disease is the reason.
func (c *chart) writePlan(category concept, aim string, of *illness) {
	r := &c.rng
	start := c.begin
	if of != nil {
		start = max(start, of.onset)
	}
	due := start + instant(r.between(90, 720))*day
	lifecycle, achieved := "active", concept{terminology + "goal-achievement", "in-progress", "Under way"}
	status := "active"
	if due < c.end {
		lifecycle, achieved = "completed", concept{terminology + "goal-achievement", "achieved", "Reached"}
		status = "completed"
	}
	goal := reference{goalKind, c.newID(), ""}
	l := c.open(goalKind, goal.id, start+hour, "us-core-goal")
	l.str("lifecycleStatus", lifecycle).concept("achievementStatus", achieved)
	l.raw(`,"description":{"text":"`, aim, `"}`).ref("subject", c.self).day("startDate", start)
	l.raw(`,"target":[{"detailString":"`, aim, `"`).day("dueDate", due).raw(`}]`)
	l.ref("expressedBy", c.self)
	if of != nil {
		l.refs("addresses", of.ref)
	}
	l.close()

	l = c.open(carePlanKind, c.newID(), start+2*hour, "us-core-careplan")
	l.narrative("Plan: ", category.display, ". Aim: ", aim, ".")
	l.str("status", status).str("intent", "plan")
	l.concepts("category", concept{coreCodes + "careplan-category", "assess-plan", "Assessment and plan"}, category)
	l.ref("subject", c.self).period("period", start, due).when("created", start)
	l.ref("author", c.practitioner(c.doctor)).refs("careTeam", c.team)
	if of != nil {
		l.refs("addresses", of.ref)
	}
	l.refs("goal", goal)
	l.raw(`,"activity":[{"detail":{"code":`).codeable(category)
	l.str("status", "in-progress").str("description", aim)
	l.raw(`}},{"detail":{"code":`).codeable(concept{snomed, "409073007", "Teaching"})
	l.str("status", "in-progress").refs("performer", c.practitioner(c.doctor)).raw(`}}]`)
	l.close()
}
