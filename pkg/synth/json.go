package synth

const hexDigits = "0123456789abcdef"

// line appends the resources of one type to a buffer, one JSON object a line. Strings are written without
// escaping, because the tables of this package contain no characters to escape (a test parses every line).
//
// Methods that take a key write a member with a comma before it, so that they follow open or another member; the
// others write a bare value.
type line struct{ buf []byte }

// open starts a resource with its id and meta. An empty profile means that US Core has none for it.
func (l *line) open(k kind, id uuid, updated instant, profile string) *line {
	l.raw(`{"resourceType":"`, k.String(), `","id":"`).uuid(id)
	l.raw(`","meta":{"versionId":"1","lastUpdated":"`)
	l.buf = appendInstant(l.buf, updated)
	l.buf = l.buf[:len(l.buf)-1]
	millis := id.low % 1000 // real servers have milliseconds; any stable digits are fine
	l.buf = append(l.buf, '.', byte('0'+millis/100), byte('0'+millis/10%10), byte('0'+millis%10), 'Z', '"')
	if profile != "" {
		l.raw(`,"profile":["http://hl7.org/fhir/us/core/StructureDefinition/`, profile, `"]`)
	}
	return l.raw(`}`)
}

func (l *line) close() { l.buf = append(l.buf, '}', '\n') }

func (l *line) raw(parts ...string) *line {
	for _, part := range parts {
		l.buf = append(l.buf, part...)
	}
	return l
}

func (l *line) key(key string) *line { return l.raw(`,"`, key, `":`) }

func (l *line) str(key, value string) *line { return l.raw(`,"`, key, `":"`, value, `"`) }

func (l *line) bool(key string, value bool) *line {
	if value {
		return l.key(key).raw(`true`)
	}
	return l.key(key).raw(`false`)
}

// narrative writes Resource.text, with a summary that was generated from the resource's data.
func (l *line) narrative(parts ...string) {
	l.raw(`,"text":{"status":"generated","div":"<div xmlns=\"http://www.w3.org/1999/xhtml\"><p>`)
	l.raw(parts...).raw(`</p></div>"}`)
}

// uuid writes the id in the canonical form: 36 characters, version 4.
func (l *line) uuid(id uuid) *line {
	high := id.high&^0xf000 | 0x4000
	low := id.low&^(0xc000<<48) | 0x8000<<48
	var text [36]byte
	at := 0
	for i := range 16 {
		word := high
		if i >= 8 {
			word = low
		}
		if i == 4 || i == 6 || i == 8 || i == 10 {
			text[at] = '-'
			at++
		}
		octet := byte(word >> (56 - i%8*8))
		text[at], text[at+1] = hexDigits[octet>>4], hexDigits[octet&15]
		at += 2
	}
	l.buf = append(l.buf, text[:]...)
	return l
}

// int writes a number.
func (l *line) int(n int) *line {
	l.buf = appendInt(l.buf, n)
	return l
}

// digits writes n with leading zeros up to the width. Higher digits are cut off.
func (l *line) digits(n uint64, width int) *line {
	var text [20]byte
	for i := width - 1; i >= 0; i-- {
		text[i] = byte('0' + n%10)
		n /= 10
	}
	l.buf = append(l.buf, text[:width]...)
	return l
}

// decimal writes n divided by 10^places: (1234, 1) is 123.4.
func (l *line) decimal(n, places int) *line {
	if places == 0 {
		return l.int(n)
	}
	if n < 0 {
		l.raw(`-`)
		n = -n
	}
	scale := 1
	for range places {
		scale *= 10
	}
	return l.int(n/scale).raw(`.`).digits(uint64(n%scale), places)
}

// reference points to another resource of the population.
type reference struct {
	kind    kind
	id      uuid
	display string // may be empty
}

func (l *line) reference(r reference) *line {
	l.raw(`{"reference":"`, r.kind.String(), `/`).uuid(r.id)
	if r.display != "" {
		l.raw(`","display":"`, r.display)
	}
	return l.raw(`"}`)
}

func (l *line) ref(key string, r reference) *line { return l.key(key).reference(r) }

func (l *line) refs(key string, list ...reference) *line {
	l.key(key)
	open := `[`
	for _, r := range list {
		l.raw(open).reference(r)
		open = `,`
	}
	return l.raw(`]`)
}

func (l *line) coding(c concept) *line {
	return l.raw(`{"system":"`, c.system, `","code":"`, c.code, `","display":"`, c.display, `"}`)
}

// codeable writes a CodeableConcept with one coding for every code; the first one's display is its text.
func (l *line) codeable(codes ...concept) *line {
	open := `{"coding":[`
	for _, c := range codes {
		l.raw(open).coding(c)
		open = `,`
	}
	return l.raw(`],"text":"`, codes[0].display, `"}`)
}

func (l *line) concept(key string, codes ...concept) *line { return l.key(key).codeable(codes...) }

// concepts writes an array with one CodeableConcept.
func (l *line) concepts(key string, codes ...concept) *line {
	return l.key(key).raw(`[`).codeable(codes...).raw(`]`)
}

// quantity writes n divided by 10^places in a UCUM unit.
func (l *line) quantity(n, places int, u unit) *line {
	l.raw(`{"value":`).decimal(n, places)
	return l.raw(`,"unit":"`, u.display, `","system":"http://unitsofmeasure.org","code":"`, u.code, `"}`)
}

// identifier writes an Identifier whose value is a prefix and ten digits.
func (l *line) identifier(system, prefix string, n uint64) *line {
	return l.raw(`{"system":"`, system, `","value":"`, prefix).digits(n, 10).raw(`"}`)
}

// phone writes a ContactPoint with a number of the range kept for fiction, 555-0100 to 555-0199.
func (l *line) phone(n uint64, use string) *line {
	return l.raw(`{"system":"phone","value":"555-01`).digits(n, 2).raw(`","use":"`, use, `"}`)
}

func (l *line) address(street int, town string, zip uint64) *line {
	return l.raw(`{"line":["`).int(street).raw(` Placeholder Lane"],"city":"`, town, `","state":"MA","postalCode":"000`).
		digits(zip, 2).raw(`","country":"US"}`)
}

func (l *line) when(key string, at instant) *line {
	l.raw(`,"`, key, `":"`)
	l.buf = appendInstant(l.buf, at)
	return l.raw(`"`)
}

func (l *line) day(key string, at instant) *line {
	l.raw(`,"`, key, `":"`)
	l.buf = appendDay(l.buf, at)
	return l.raw(`"`)
}

// period writes a Period.
func (l *line) period(key string, from, to instant) *line {
	l.raw(`,"`, key, `":{"start":"`)
	l.buf = appendInstant(l.buf, from)
	l.raw(`","end":"`)
	l.buf = appendInstant(l.buf, to)
	return l.raw(`"}`)
}

func appendInt(b []byte, n int) []byte {
	if n < 0 {
		b = append(b, '-')
		n = -n
	}
	var text [20]byte
	at := len(text)
	for {
		at--
		text[at] = byte('0' + n%10)
		n /= 10
		if n == 0 {
			return append(b, text[at:]...)
		}
	}
}
