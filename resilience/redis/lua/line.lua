-- The server's own time in whole microseconds, as a line that never goes back: it stands still where the clock falls back
-- (or another server's clock is behind), and goes on from there. `last` and `offset` are what the guard has kept of it.
local function line(last, offset)
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2] + offset
  if now < last then
    return last, offset + last - now
  end
  return now, offset
end

-- Milliseconds after which a key has nothing left to say, given the microseconds: never too few.
local function lasting(us)
  return string.format('%.0f', math.floor(us / 1000) + 2)
end

