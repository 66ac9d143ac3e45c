package synth

// instant is a moment in seconds since 1970-01-01T00:00:00Z; earlier ones are negative.
type instant int64

const (
	minute instant = 60
	hour           = 60 * minute
	day            = 24 * hour
	year           = 365*day + 6*hour
)

// today is the population's present, 2025-10-01T00:00:00Z: nothing was recorded later. It is constant, so that the
// same seed gives the same files on any day.
const today = 20362 * day

// date returns the civil date of the instant, by Hinnant's days-to-civil algorithm: eras of 400 years that begin on
// 1 March, so that the leap day is the last day of a year.
func (t instant) date() (year, month, dayOfMonth int) {
	days := int64(t / day)
	if t%day < 0 {
		days--
	}
	days += 719468
	era := days / 146097
	if days < 0 {
		era = (days - 146096) / 146097
	}
	ofEra := days - era*146097
	yearOfEra := (ofEra - ofEra/1460 + ofEra/36524 - ofEra/146096) / 365
	ofYear := ofEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	shifted := (5*ofYear + 2) / 153
	dayOfMonth = int(ofYear - (153*shifted+2)/5 + 1)
	month = int(shifted + 3)
	if month > 12 {
		month -= 12
	}
	year = int(yearOfEra + era*400)
	if month <= 2 {
		year++
	}
	return year, month, dayOfMonth
}

func appendTwo(b []byte, n int) []byte { return append(b, byte('0'+n/10), byte('0'+n%10)) }

func appendDay(b []byte, t instant) []byte {
	y, m, d := t.date()
	b = appendTwo(appendTwo(b, y/100), y%100)
	b = appendTwo(append(b, '-'), m)
	return appendTwo(append(b, '-'), d)
}

func appendInstant(b []byte, t instant) []byte {
	b = append(appendDay(b, t), 'T')
	second := int(t % day)
	if second < 0 {
		second += int(day)
	}
	b = append(appendTwo(b, second/3600), ':')
	b = append(appendTwo(b, second/60%60), ':')
	return append(appendTwo(b, second%60), 'Z')
}
