package synth

import "encoding/base64"

var documentTable = []concept{
	{loinc, "11506-3", "Progress note"}, {loinc, "34117-2", "History and examination"},
	{loinc, "11488-4", "Note of a consultation"}, {loinc, "28570-0", "Note of a procedure"},
}

var (
	dischargeSummary = concept{loinc, "18842-5", "Summary at discharge"}
	emergencyNote    = concept{loinc, "34111-5", "Note of the emergency room"}
)

var noteSentences = []string{
	"The patient came in person and was seen on time. ",
	"Nothing in this note happened; it is text for testing. ",
	"Appetite and sleep are as before, and weight is steady. ",
	"No fever was reported since the last visit. ",
	"Heart and lungs sound as they should. ",
	"The list of medications was gone through and is up to date. ",
	"The plan was explained, and the questions asked were answered. ",
	"Walking is easy, stairs take a little longer than last year. ",
	"The skin is clear, and the joints move freely. ",
	"Results of the laboratory will be discussed at the next visit. ",
	"Diet, movement and rest were talked about. ",
	"Return in three months, or earlier if anything changes. ",
}

// writeNote writes an invented note with the number of sentences, in base64.
func (c *chart) writeNote(l *line, sentences int) (size int) {
	var text [2048]byte
	note := text[:0]
	for range sentences {
		note = append(note, *pick(&c.rng, noteSentences)...)
	}
	l.buf = base64.StdEncoding.AppendEncode(l.buf, note)
	return len(note)
}

// writeDocuments writes the clinical note of most visits.
func (c *chart) writeDocuments() {
	r := &c.rng
	v := &c.visit
	if !v.hospital && !c.chance(62) {
		return
	}
	kind, sentences := *pick(r, documentTable), r.between(2, 8)
	if v.hospital {
		kind, sentences = emergencyNote, r.between(8, 18)
		if v.class.code == "IMP" {
			kind = dischargeSummary
		}
	}
	id := c.newID()
	l := c.open(documentKind, id, v.end+30*minute, "us-core-documentreference")
	l.raw(`,"identifier":[{"system":"urn:ietf:rfc:3986","value":"urn:uuid:`).uuid(id).raw(`"}]`)
	l.str("status", "current").concept("type", kind)
	l.concepts("category", concept{coreCodes + "us-core-documentreference-category", "clinical-note", "Clinical note"})
	l.ref("subject", c.self).when("date", v.end)
	if r.chance(20) {
		l.refs("author", c.pool.roles[v.number])
	} else {
		l.refs("author", v.doctor)
	}
	l.ref("custodian", v.organization)
	l.raw(`,"content":[{"attachment":{"contentType":"text/plain; charset=utf-8","language":"en-US","data":"`)
	size := c.writeNote(l, sentences)
	l.raw(`","size":`).int(size).str("title", kind.display).when("creation", v.end)
	l.raw(`},"format":{"system":"http://ihe.net/fhir/ihe.formatcode.fhir/CodeSystem/formatcode"`)
	l.str("code", "urn:ihe:iti:xds:2017:mimeTypeSufficient").raw(`}}]`)
	l.raw(`,"context":{"encounter":[`).reference(v.ref).raw(`]`).period("period", v.start, v.end).raw(`}`)
	l.close()
}

// question is one item of a questionnaire with its answers, in the order of their scores from 0.
type question struct {
	link, text string
	answers    []concept
}

type questionnaire struct {
	url, title string
	questions  []question
	total      string // link of the sum of the scores, or ""
}

var howOften = []concept{
	{loinc, "LA6568-5", "Not at all"}, {loinc, "LA6569-3", "On several days"},
	{loinc, "LA6570-1", "On more than half the days"}, {loinc, "LA6571-9", "Nearly every day"},
}

var howTrue = []concept{
	{loinc, "LA28398-8", "Never true"}, {loinc, "LA6729-3", "Sometimes true"}, {loinc, "LA28397-0", "Often true"},
}

var questionnaireTable = []questionnaire{
	{"https://questionnaires.example.org/Questionnaire/mood", "Mood in two questions", []question{
		{"/44250-9", "How often was there little joy in doing things?", howOften},
		{"/44255-8", "How often was the mood low?", howOften},
	}, "/55758-7"},
	{"https://questionnaires.example.org/Questionnaire/food", "Food in two questions", []question{
		{"/88122-7", "Was there worry that food would run out?", howTrue},
		{"/88123-5", "Did food run out before there was money for more?", howTrue},
	}, ""},
}

// writeQuestionnaire writes the answers of some adult patients at a visit.
func (c *chart) writeQuestionnaire() {
	r := &c.rng
	v := &c.visit
	if v.hospital || c.age(v.start) < 18 || !c.chance(22) {
		return
	}
	q := pick(r, questionnaireTable)
	l := c.open(answersKind, c.newID(), v.end, "us-core-questionnaireresponse")
	l.str("questionnaire", q.url).str("status", "completed").ref("subject", c.self).ref("encounter", v.ref)
	l.when("authored", v.start)
	if c.hasKin && r.chance(6) {
		l.ref("author", c.related)
	} else {
		l.ref("author", c.self)
	}
	sum := 0
	l.raw(`,"item":[`)
	for i := range q.questions {
		item := &q.questions[i]
		if i > 0 {
			l.raw(`,`)
		}
		answer := min(r.below(len(item.answers)), r.below(len(item.answers)))
		sum += answer
		l.raw(`{"linkId":"`, item.link, `","text":"`, item.text, `","answer":[{"valueCoding":`)
		l.coding(item.answers[answer]).raw(`}]}`)
	}
	if q.total != "" {
		l.raw(`,{"linkId":"`, q.total, `","text":"Sum","answer":[{"valueInteger":`).int(sum).raw(`}]}`)
	}
	l.raw(`]`)
	l.close()
}
