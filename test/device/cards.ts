/** What cards answer to a query, field by field, as `nvidia-smi --format=csv,noheader,nounits` prints it. */

export type Card = Readonly<Record<string, string>>

export const rtx4090: Card = {
  "index": "0",
  "uuid": "GPU-5f2a7c1e-9b3d-4e60-8a11-0c4d5e6f7a8b",
  "pci.bus_id": "00000000:01:00.0",
  "name": "NVIDIA GeForce RTX 4090",
  "memory.total": "24564",
  "memory.used": "1024",
  "utilization.gpu": "37",
  "temperature.gpu": "56",
  "power.draw": "123.45",
  "power.limit": "450.00",
  "power.min_limit": "150.00",
  "power.max_limit": "600.00",
  "compute_cap": "8.9",
  "mig.mode.current": "[N/A]",
  "clocks_event_reasons.active": "0x0000000000000001",
  "ecc.errors.uncorrected.volatile.total": "[N/A]"
}

/** Divided into instances, so that the parent has no utilisation of its own. */
export const h100Mig: Card = {
  ...rtx4090,
  "uuid": "GPU-1d0b2c3a-4f5e-6071-8293-a4b5c6d7e8f9",
  "pci.bus_id": "00000000:04:00.0",
  "name": "NVIDIA H100 80GB HBM3",
  "memory.total": "81559",
  "memory.used": "38",
  "utilization.gpu": "[N/A]",
  "temperature.gpu": "31",
  "power.draw": "71.80",
  "power.limit": "700.00",
  "power.min_limit": "200.00",
  "power.max_limit": "700.00",
  "compute_cap": "9.0",
  "mig.mode.current": "Enabled",
  "clocks_event_reasons.active": "0x0000000000000000",
  "ecc.errors.uncorrected.volatile.total": "0"
}

/** Shares the processor's memory, and reports next to nothing. */
export const gb10: Card = {
  ...rtx4090,
  "uuid": "GPU-6e5d4c3b-2a19-0817-f6e5-d4c3b2a19087",
  "pci.bus_id": "0000000F:01:00.0",
  "name": "NVIDIA GB10",
  "memory.total": "[N/A]",
  "memory.used": "[N/A]",
  "utilization.gpu": "[N/A]",
  "temperature.gpu": "[N/A]",
  "power.draw": "[N/A]",
  "power.limit": "[N/A]",
  "power.min_limit": "[N/A]",
  "power.max_limit": "[N/A]",
  "compute_cap": "12.1",
  "mig.mode.current": "[N/A]",
  "clocks_event_reasons.active": "[Not Supported]",
  "ecc.errors.uncorrected.volatile.total": "[N/A]"
}

export const secondCard = (card: Card): Card => ({
  ...card,
  "index": "1",
  "uuid": card["uuid"]!.replace(/.$/, "0"),
  "pci.bus_id": "00000000:02:00.0"
})

/** Of a driver that knows neither the compute capability nor the new name of why clocks are low. */
export const oldDriver: Card = (() => {
  const {
    "clocks_event_reasons.active": reasons,
    "compute_cap": _capability,
    "mig.mode.current": _mig,
    ...known
  } = rtx4090
  return {
    ...known,
    "name": "Tesla V100-SXM2-16GB",
    "memory.total": "16160",
    "clocks_throttle_reasons.active": reasons!
  }
})()
