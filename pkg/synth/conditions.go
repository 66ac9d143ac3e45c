package synth

var (
	problemList        = concept{terminology + "condition-category", "problem-list-item", "Item of the problem list"}
	encounterDiagnosis = concept{terminology + "condition-category", "encounter-diagnosis", "Diagnosis of a visit"}
	confirmed          = concept{terminology + "condition-ver-status", "confirmed", "Confirmed"}
	clinicallyActive   = concept{terminology + "condition-clinical", "active", "Active"}
	clinicallyResolved = concept{terminology + "condition-clinical", "resolved", "Resolved"}
)

// writeProblems draws the chronic diseases that the patient has and writes them as the problem list.
func (c *chart) writeProblems() {
	age := c.age(c.end)
	for i := range acuteFrom {
		d := &diseaseTable[i]
		if age < d.fromAge || !c.rng.chance(d.percent) && !(c.complete && i == 0) {
			continue
		}
		earliest := max(c.born+instant(d.fromAge)*year, c.begin-10*year)
		onset := earliest + instant(c.rng.below(max(1, int(c.end-earliest))))
		own := illness{d, reference{conditionKind, c.newID(), d.code.display}, onset}
		c.chronic = append(c.chronic, own)

		recorded := max(onset, c.begin)
		l := c.open(conditionKind, own.ref.id, recorded+hour, "us-core-condition-problems-health-concerns")
		l.narrative(d.code.display, ", active, on the problem list.")
		l.concept("clinicalStatus", clinicallyActive).concept("verificationStatus", confirmed)
		l.concepts("category", problemList)
		l.concept("severity", concept{snomed, "6736007", "Moderate"})
		l.concept("code", d.code, d.icd).ref("subject", c.self)
		l.when("onsetDateTime", onset).when("recordedDate", recorded)
		l.ref("recorder", c.practitioner(c.doctor))
		if c.rng.chance(20) {
			l.ref("asserter", c.self)
		}
		l.close()
	}
}

// drawIllness draws an acute disease for a visit. Its Condition is written after the Encounter.
func (c *chart) drawIllness(at instant) (illness, bool) {
	d := pick(&c.rng, diseaseTable[acuteFrom:])
	if c.age(at) < d.fromAge {
		return illness{}, false
	}
	onset := max(c.born, at-instant(c.rng.between(2, 96))*hour)
	return illness{d, reference{conditionKind, c.newID(), d.code.display}, onset}, true
}

func (c *chart) writeIllness() {
	v := &c.visit
	if !v.sick {
		return
	}
	abated := v.end + instant(c.rng.between(3, 28))*day
	over := abated < c.end
	l := c.open(conditionKind, v.cause.ref.id, v.end, "us-core-condition-encounter-diagnosis")
	if over {
		l.concept("clinicalStatus", clinicallyResolved)
	} else {
		l.concept("clinicalStatus", clinicallyActive)
	}
	l.concept("verificationStatus", confirmed).concepts("category", encounterDiagnosis)
	l.concept("code", v.cause.code, v.cause.icd).ref("subject", c.self).ref("encounter", v.ref)
	l.when("onsetDateTime", v.cause.onset)
	if over {
		l.when("abatementDateTime", abated)
	}
	l.when("recordedDate", v.start).ref("recorder", v.doctor)
	l.close()
}

type allergen struct {
	code     concept
	category string
}

var allergenTable = []allergen{
	{concept{snomed, "419474003", "Allergy to mould"}, "environment"},
	{concept{snomed, "418689008", "Allergy to grass pollen"}, "environment"},
	{concept{snomed, "419263009", "Allergy to tree pollen"}, "environment"},
	{concept{snomed, "232347008", "Allergy to animal dander"}, "environment"},
	{concept{snomed, "232350006", "Allergy to house dust mite"}, "environment"},
	{concept{snomed, "91935009", "Allergy to peanut"}, "food"},
	{concept{snomed, "300913006", "Allergy to shellfish"}, "food"},
	{concept{snomed, "425525006", "Allergy to dairy products"}, "food"},
	{concept{rxnorm, "723", "Amoxicillin"}, "medication"},
	{concept{rxnorm, "1191", "Aspirin"}, "medication"},
	{concept{rxnorm, "5640", "Ibuprofen"}, "medication"},
	{concept{snomed, "424213003", "Allergy to bee venom"}, "environment"},
}

var reactions = []concept{
	{snomed, "247472004", "Hives"}, {snomed, "39579001", "Anaphylaxis"}, {snomed, "422587007", "Nausea"},
	{snomed, "267036007", "Shortness of breath"}, {snomed, "271807003", "Rash"},
}

func (c *chart) writeAllergies() {
	count := 0
	if c.rng.chance(45) || c.complete {
		count = c.rng.between(1, 4)
	}
	first := c.rng.below(len(allergenTable))
	for i := range count {
		a := &allergenTable[(first+i*5)%len(allergenTable)] // 5 and 12 are coprime: no allergen is repeated
		onset := c.born + instant(c.rng.below(int(c.end-c.born)))
		recorded := max(onset, c.begin)
		l := c.open(allergyKind, c.newID(), recorded+hour, "us-core-allergyintolerance")
		l.narrative(a.code.display, ".")
		l.concept("clinicalStatus", concept{terminology + "allergyintolerance-clinical", "active", "Active"})
		l.concept("verificationStatus", concept{terminology + "allergyintolerance-verification", "confirmed", "Confirmed"})
		l.str("type", "allergy").raw(`,"category":["`, a.category, `"]`)
		severity := *pick(&c.rng, []string{"mild", "moderate", "severe"})
		criticality := "low"
		if severity == "severe" {
			criticality = "high"
		}
		l.str("criticality", criticality).concept("code", a.code).ref("patient", c.self)
		l.when("onsetDateTime", onset).when("recordedDate", recorded).ref("recorder", c.practitioner(c.doctor))
		l.raw(`,"reaction":[{"manifestation":[`).codeable(*pick(&c.rng, reactions)).raw(`]`)
		l.str("severity", severity).raw(`}]`)
		l.close()
	}
}
